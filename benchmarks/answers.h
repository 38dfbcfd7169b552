/* What the vendor answers and the load client expects, byte for byte: one source for both.
 *
 * An answer is named by a word, the last part of a model's name or the first segment of a path:
 *   u900      a JSON answer of 900 bytes
 *   s200x5000 a stream of 200 events, 5000 us apart, then its end
 * Each event carries the time at which it was sent, in ns of CLOCK_MONOTONIC, in STAMP_DIGITS.
 */
#ifndef ANSWERS_H
#define ANSWERS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define STAMP_DIGITS 19
#define EVENTS_MAX 100000u
#define UNARY_BYTES_MAX (1u << 20)

static const char EVENT_HEAD[] =
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,"
    "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"@";
static const char EVENT_TAIL[] =
    " tokens come one by one as a model says them\"},\"finish_reason\":null}]}\n\n";
static const char STREAM_STOP[] =
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,"
    "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
static const char STREAM_USAGE[] =
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,"
    "\"model\":\"bench\",\"choices\":[],\"usage\":{\"prompt_tokens\":123,"
    "\"completion_tokens\":200,\"total_tokens\":323}}\n\n";
static const char STREAM_DONE[] = "data: [DONE]\n\n";
static const char UNARY_HEAD[] =
    "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1767225600,"
    "\"model\":\"bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
    "\"content\":\"";
static const char UNARY_TAIL[] =
    "\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":123,"
    "\"completion_tokens\":200,\"total_tokens\":323}}";

#define EVENT_BYTES (sizeof EVENT_HEAD - 1 + STAMP_DIGITS + sizeof EVENT_TAIL - 1)
#define EVENT_STAMP_AT (sizeof EVENT_HEAD - 1)

struct answer {
    int is_stream;
    unsigned events;      /* of a stream, its end not counted */
    uint64_t interval_ns; /* between two of them */
    size_t unary_bytes;
};

static inline uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

/* Read the word at `text`; return 0 where it names no answer. */
static inline int parse_answer(const char *text, struct answer *answer) {
    unsigned first = 0, second = 0;
    memset(answer, 0, sizeof *answer);
    if (sscanf(text, "s%ux%u", &first, &second) == 2 && first > 0 && first <= EVENTS_MAX) {
        answer->is_stream = 1;
        answer->events = first;
        answer->interval_ns = (uint64_t)second * 1000u;
        return 1;
    }
    size_t least = sizeof UNARY_HEAD + sizeof UNARY_TAIL;
    if (sscanf(text, "u%u", &first) == 1 && first >= least && first <= UNARY_BYTES_MAX) {
        answer->unary_bytes = first;
        return 1;
    }
    return 0;
}

/* Write an event that is stamped `stamp` to `out`, which has room for EVENT_BYTES. */
static inline void write_event(char *out, uint64_t stamp) {
    memcpy(out, EVENT_HEAD, sizeof EVENT_HEAD - 1);
    for (char *digit = out + EVENT_STAMP_AT + STAMP_DIGITS; digit > out + EVENT_STAMP_AT;) {
        *--digit = (char)('0' + stamp % 10);
        stamp /= 10;
    }
    memcpy(out + EVENT_STAMP_AT + STAMP_DIGITS, EVENT_TAIL, sizeof EVENT_TAIL - 1);
}

/* Write a JSON answer of `bytes` to `out`. */
static inline void write_unary(char *out, size_t bytes) {
    static const char words[] = "the model says what it was asked to say and says it at length ";
    size_t head = sizeof UNARY_HEAD - 1, tail = sizeof UNARY_TAIL - 1;
    memcpy(out, UNARY_HEAD, head);
    for (size_t at = head; at < bytes - tail; at++) out[at] = words[(at - head) % (sizeof words - 1)];
    memcpy(out + bytes - tail, UNARY_TAIL, tail);
}

static inline void *must(void *memory) {
    if (memory == NULL) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return memory;
}

#endif
