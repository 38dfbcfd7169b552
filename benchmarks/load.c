/* A load client for benchmarks: one thread, epoll, keep-alive, every byte of every answer checked.
 *
 * load --port P --answer WORD --body FILE [--header LINE]... [--tokens FILE] [--connections N]
 *      [--ramp S] [--warmup S] [--seconds S] [--rate R] [--requests N] [--loose] [--usage]
 *      [--latencies FILE] [--first-bytes FILE]
 *
 * Connections open evenly over the ramp and send call after call (closed loop), or with --rate as
 * the clock says, whether answers have come or not (a latency then counts from the time at which
 * the call was due). "begin" and "end" on stdout mark the window that is measured; calls that are
 * open then still finish. With --requests the window is exactly these calls. Last comes a line of
 * JSON. WORD is from answers.h; --loose only counts, for those who write answers anew. Samples are
 * uint32, in ns: of each call, or of each event of a stream (from the vendor's stamp); and from
 * each request to its answer's first byte. --tokens cycles through bearers of one length;
 * with --usage streams are to end with the usage, for the body asks for it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "answers.h"

#define HEAD_BYTES_MAX 16384
#define READ_BYTES (256u << 10)
#define EPOLL_EVENTS 256
#define ERRORS_MAX 1000         /* then there is nothing to measure */
#define SAMPLES_MAX (16u << 20) /* 64 MiB; later ones are not kept */
#define LATE_NS 100000ull       /* until it is looked again whether one is free */
#define STALL_NS 60000000000ull /* without any byte: given up */
#define HEADERS_MAX 32
#define SECOND_NS 1000000000ull

enum phase { CLOSED, IDLE, SENDING, HEAD, BODY };
enum chunk { CHUNK_SIZE, CHUNK_DATA, CHUNK_DATA_END, CHUNK_LAST };

struct connection {
    int fd;
    enum phase phase;
    uint64_t due_ns, sent_ns;
    size_t sent; /* of the request */
    char *head;  /* only while it comes in more than one piece */
    size_t head_bytes;
    int is_chunked, closes_after, got_first, is_ok, answers_before;
    enum chunk chunk;
    int saw_size;
    size_t left; /* of the body or of the chunk */
    size_t at;   /* bytes of the body that have come */
    size_t in_event;
    uint64_t stamp;
    unsigned events;
    int newlines, digits, in_stamp; /* loose */
};

static struct samples {
    uint32_t *values;
    size_t count;
    const char *path;
} latencies, first_bytes;

static struct answer answer;
static char *expected, event_pattern[EVENT_BYTES], stream_end[1024];
static size_t expected_bytes, stream_end_bytes;
static char *request;
static size_t request_bytes, token_at, token_bytes, tokens_count, token_next;
static char *tokens;
static struct connection *all;
static unsigned connections = 1;
static int epoll_fd, timer_fd, port, is_loose, wants_usage;
static double ramp = 0, warmup = 1, seconds = 3, rate = 0;
static unsigned long requests_max;

static int is_measuring, is_stopping;
static unsigned opened, active;
static uint64_t started_ns, begin_ns, end_ns, last_byte_ns, sent_calls, done_calls;
static uint64_t calls, events, reads, late_calls;
static uint64_t errors_connect, errors_status, errors_bytes, errors_broken;
static int first_bad_status;
static char scratch[READ_BYTES];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void sample(struct samples *to, uint64_t value_ns) {
    if (!is_measuring || to->path == NULL || to->count == SAMPLES_MAX) return;
    if (to->values == NULL) to->values = must(malloc(SAMPLES_MAX * sizeof *to->values));
    to->values[to->count++] = value_ns > UINT32_MAX ? UINT32_MAX : (uint32_t)value_ns;
}

static void write_samples(struct samples *from) {
    if (from->path == NULL) return;
    FILE *file = fopen(from->path, "wb");
    if (file == NULL) fail(from->path);
    if (fwrite(from->values, sizeof *from->values, from->count, file) != from->count || fclose(file))
        fail(from->path);
}

static void count_error(uint64_t *which) {
    ++*which;
    if (errors_connect + errors_status + errors_bytes + errors_broken >= ERRORS_MAX) {
        fprintf(stderr, "given up after %d errors (connect %lu, status %lu (%d), bytes %lu, broken "
                "%lu)\n", ERRORS_MAX, errors_connect, errors_status, first_bad_status, errors_bytes,
                errors_broken);
        exit(3);
    }
}

/* ------------------------------------------------------------------------------------ sending */

static void start_call(struct connection *c, uint64_t due);
static void finish_call(struct connection *c);

static void watch(struct connection *c, uint32_t what, int operation) {
    struct epoll_event event = {.events = what, .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &event) != 0) fail("epoll_ctl");
}

static void connect_to_system(struct connection *c) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) fail("socket");
    /* Blocking: on loopback it takes as long as the system call. */
    while (connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0) {
        if (errno == EINTR) continue;
        count_error(&errors_connect);
        usleep(10000);
        close(c->fd);
        c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (c->fd < 0) fail("socket");
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->phase = IDLE;
    c->answers_before = 0;
    watch(c, EPOLLIN, EPOLL_CTL_ADD);
}

static void send_rest(struct connection *c) {
    while (c->sent < request_bytes) {
        ssize_t done = send(c->fd, request + c->sent, request_bytes - c->sent,
                            MSG_DONTWAIT | MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0 && errno == EAGAIN) {
            if (tokens != NULL) {
                fputs("a request with a token of its own has to go out at once\n", stderr);
                exit(1);
            }
            if (c->phase != SENDING) watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            c->phase = SENDING;
            return;
        }
        if (done < 0) return; /* the read will tell */
        c->sent += (size_t)done;
    }
    if (c->phase == SENDING) watch(c, EPOLLIN, EPOLL_CTL_MOD);
    c->phase = HEAD;
}

static void start_call(struct connection *c, uint64_t due) {
    if (c->phase == CLOSED) connect_to_system(c);
    if (tokens != NULL) {
        memcpy(request + token_at, tokens + token_next * token_bytes, token_bytes);
        token_next = (token_next + 1) % tokens_count;
    }
    c->due_ns = due;
    c->sent_ns = now_ns();
    c->sent = c->head_bytes = c->at = c->in_event = 0;
    c->got_first = c->newlines = c->digits = c->in_stamp = c->saw_size = 0;
    c->is_ok = 1;
    c->events = 0;
    c->stamp = 0;
    c->chunk = CHUNK_SIZE;
    sent_calls++;
    active++;
    c->phase = HEAD;
    send_rest(c);
}

static int may_send(void) {
    return !is_stopping && (requests_max == 0 || sent_calls < requests_max);
}

static void break_connection(struct connection *c) {
    int was_open = c->phase != IDLE;
    close(c->fd);
    free(c->head);
    c->head = NULL;
    c->phase = CLOSED;
    if (was_open) {
        active--;
        done_calls++;
        count_error(&errors_broken);
    }
    if (rate == 0 && may_send()) start_call(c, now_ns());
}

/* ---------------------------------------------------------------------------------- receiving */

static void count_event(struct connection *c, uint64_t now) {
    c->events++;
    if (is_measuring) events++;
    if (c->stamp) sample(&latencies, now > c->stamp ? now - c->stamp : 0);
    c->stamp = 0;
}

/* Compare with what the vendor sends, whose stamps alone differ. Return 0 where it differs. */
static int compare(struct connection *c, const char *bytes, size_t count, uint64_t now) {
    if (!answer.is_stream) {
        int same = c->at + count <= expected_bytes && memcmp(bytes, expected + c->at, count) == 0;
        c->at += count;
        return same;
    }
    while (count > 0) {
        size_t used;
        if (c->events == answer.events) {
            if (c->at + count > stream_end_bytes) return 0;
            if (memcmp(bytes, stream_end + c->at, count) != 0) return 0;
            c->at += count;
            return 1;
        }
        if (c->in_event >= EVENT_STAMP_AT && c->in_event < EVENT_STAMP_AT + STAMP_DIGITS) {
            if (*bytes < '0' || *bytes > '9') return 0;
            c->stamp = c->stamp * 10 + (uint64_t)(*bytes - '0');
            used = 1;
        } else {
            size_t until = c->in_event < EVENT_STAMP_AT ? EVENT_STAMP_AT : EVENT_BYTES;
            used = until - c->in_event < count ? until - c->in_event : count;
            if (memcmp(bytes, event_pattern + c->in_event, used) != 0) return 0;
        }
        c->in_event += used;
        bytes += used;
        count -= used;
        if (c->in_event == EVENT_BYTES) {
            c->in_event = 0;
            count_event(c, now);
        }
    }
    return 1;
}

/* Count events that carry a stamp; whatever else is in the answer does not matter. */
static void count_loosely(struct connection *c, const char *bytes, size_t count, uint64_t now) {
    c->at += count;
    if (!answer.is_stream) return;
    for (const char *end = bytes + count; bytes < end; bytes++) {
        if (*bytes == '@') {
            c->in_stamp = 1;
            c->digits = 0;
            c->stamp = 0;
        } else if (c->in_stamp && *bytes >= '0' && *bytes <= '9') {
            c->stamp = c->stamp * 10 + (uint64_t)(*bytes - '0');
            if (++c->digits == STAMP_DIGITS) {
                c->in_stamp = 0;
                count_event(c, now);
            }
        } else {
            c->in_stamp = 0;
        }
    }
}

static void take_body(struct connection *c, const char *bytes, size_t count, uint64_t now) {
    if (count == 0) return;
    if (!c->got_first) {
        c->got_first = 1;
        sample(&first_bytes, now - c->sent_ns);
    }
    if (is_loose)
        count_loosely(c, bytes, count, now);
    else if (c->is_ok > 0 && !compare(c, bytes, count, now))
        c->is_ok = 0;
}

static int is_whole(struct connection *c) {
    if (answer.is_stream) {
        if (c->events != answer.events) return 0;
        return is_loose || c->at == stream_end_bytes;
    }
    return is_loose ? c->at > 0 : c->at == expected_bytes;
}

static void finish_call(struct connection *c) {
    uint64_t now = now_ns();
    active--;
    done_calls++;
    c->answers_before = 1;
    if (c->is_ok >= 0 && (!c->is_ok || !is_whole(c))) count_error(&errors_bytes);
    if (is_measuring) {
        calls++;
        if (!answer.is_stream) sample(&latencies, now - c->due_ns);
    }
    c->phase = IDLE;
    if (c->closes_after) {
        close(c->fd);
        c->phase = CLOSED;
    }
    if (rate == 0 && may_send()) start_call(c, now);
}

/* Return the bytes of the head, 0 where it is not whole. */
static size_t take_head(struct connection *c, const char *bytes, size_t count) {
    const char *end = memmem(bytes, count, "\r\n\r\n", 4);
    if (end == NULL) return 0;
    int status = count > 12 ? atoi(bytes + 9) : 0;
    if (status != 200) {
        if (first_bad_status == 0) first_bad_status = status;
        count_error(&errors_status);
        c->is_ok = -1; /* counted */
    }
    c->is_chunked = c->closes_after = 0;
    c->left = 0;
    for (const char *line = bytes; line < end;) {
        line = memmem(line, (size_t)(end - line) + 2, "\r\n", 2);
        if (line == NULL || line >= end) break;
        line += 2;
        if (strncasecmp(line, "content-length:", 15) == 0) c->left = strtoul(line + 15, NULL, 10);
        if (strncasecmp(line, "transfer-encoding: chunked", 26) == 0) c->is_chunked = 1;
        if (strncasecmp(line, "connection: close", 17) == 0) c->closes_after = 1;
    }
    c->phase = BODY;
    return (size_t)(end - bytes) + 4;
}

/* Take the body's bytes; return 1 where it is whole, -1 where its chunks are broken. */
static int take_framed(struct connection *c, const char *bytes, size_t count, uint64_t now) {
    if (!c->is_chunked) {
        if (count > c->left) return -1;
        take_body(c, bytes, count, now);
        c->left -= count;
        return c->left == 0;
    }
    const char *end = bytes + count;
    while (bytes < end) {
        if (c->chunk == CHUNK_DATA) {
            size_t some = (size_t)(end - bytes) < c->left ? (size_t)(end - bytes) : c->left;
            take_body(c, bytes, some, now);
            bytes += some;
            c->left -= some;
            if (c->left == 0) c->chunk = CHUNK_DATA_END;
            continue;
        }
        char byte = *bytes++;
        if (c->chunk == CHUNK_SIZE) {
            if (byte == '\n') {
                if (!c->saw_size) return -1;
                c->saw_size = 0;
                c->chunk = c->left ? CHUNK_DATA : CHUNK_LAST;
                continue;
            }
            if (byte == '\r') continue;
            int digit = byte >= '0' && byte <= '9'                   ? byte - '0'
                        : (byte | 32) >= 'a' && (byte | 32) <= 'f' ? (byte | 32) - 'a' + 10
                                                                     : -1;
            if (digit < 0) return -1;
            c->left = (c->saw_size ? c->left * 16 : 0) + (size_t)digit;
            c->saw_size = 1;
        } else if (byte == '\n') {
            if (c->chunk == CHUNK_LAST) return bytes == end ? 1 : -1;
            c->chunk = CHUNK_SIZE;
        } else if (byte != '\r') {
            return -1; /* neither trailers nor extensions are sent */
        }
    }
    return 0;
}

static void receive(struct connection *c) {
    ssize_t count = recv(c->fd, scratch, sizeof scratch, MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count <= 0 || c->phase == IDLE) {
        break_connection(c);
        return;
    }
    uint64_t now = last_byte_ns = now_ns();
    const char *bytes = scratch;
    size_t left = (size_t)count;
    if (is_measuring) reads++;
    if (c->phase == HEAD || c->phase == SENDING) {
        if (c->head != NULL) {
            if (c->head_bytes + left > HEAD_BYTES_MAX + READ_BYTES) {
                break_connection(c);
                return;
            }
            memcpy(c->head + c->head_bytes, scratch, left);
            bytes = c->head;
            left += c->head_bytes;
        }
        size_t head = take_head(c, bytes, left);
        if (head == 0) {
            if (c->head == NULL) {
                c->head = must(malloc(HEAD_BYTES_MAX + 2 * READ_BYTES));
                memcpy(c->head, scratch, left);
            }
            c->head_bytes = left;
            return;
        }
        bytes += head;
        left -= head;
    }
    int state = left == 0 && (c->is_chunked || c->left > 0) ? 0 : take_framed(c, bytes, left, now);
    free(c->head);
    c->head = NULL;
    if (state < 0) {
        c->is_ok = 0;
        break_connection(c);
    } else if (state > 0) {
        finish_call(c);
    }
}

/* -------------------------------------------------------------------------------------- start */

static char *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail(path);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *content = must(malloc(*bytes + 1));
    if (fread(content, 1, *bytes, file) != *bytes) fail(path);
    fclose(file);
    content[*bytes] = '\0';
    return content;
}

static void build_request(const char *body_path, char *const *headers, int count, const char *path) {
    size_t body_bytes, room = 4096;
    char *body = read_file(body_path, &body_bytes);
    for (int i = 0; i < count; i++) room += strlen(headers[i]) + 2;
    request = must(malloc(room + body_bytes + token_bytes));
    char *to = request;
    to += sprintf(to, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n", path, port);
    if (tokens != NULL) {
        to += sprintf(to, "Authorization: Bearer ");
        token_at = (size_t)(to - request);
        memcpy(to, tokens, token_bytes);
        to += token_bytes;
        to += sprintf(to, "\r\n");
    }
    for (int i = 0; i < count; i++) to += sprintf(to, "%s\r\n", headers[i]);
    to += sprintf(to, "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n", body_bytes);
    memcpy(to, body, body_bytes);
    request_bytes = (size_t)(to - request) + body_bytes;
    free(body);
}

static void read_tokens(const char *path) {
    size_t bytes;
    char *text = read_file(path, &bytes), *to;
    token_bytes = strcspn(text, "\n");
    to = tokens = must(malloc(bytes + 1));
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        if (strlen(line) != token_bytes) {
            fputs("tokens have to be of one length\n", stderr);
            exit(2);
        }
        memcpy(to, line, token_bytes);
        to += token_bytes;
        tokens_count++;
    }
    free(text);
}

static void set_timer(uint64_t at_ns) {
    struct itimerspec at = {.it_value = {(time_t)(at_ns / SECOND_NS), (long)(at_ns % SECOND_NS)}};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL) != 0) fail("timerfd_settime");
}

static void say(const char *word) {
    puts(word);
    fflush(stdout);
}

static void begin(uint64_t until_ns) {
    is_measuring = 1;
    begin_ns = now_ns();
    end_ns = until_ns;
    say("begin");
}

/* Open what is due, send what is due; return when to look again. */
static uint64_t keep_time(uint64_t now) {
    static uint64_t sent_by_clock;
    static unsigned next_free;
    uint64_t next = now + SECOND_NS;
    if (requests_max > 0 && begin_ns == 0) begin(UINT64_MAX);
    while (opened < connections) {
        uint64_t due = started_ns + (uint64_t)(ramp * 1e9 * opened / connections);
        if (due > now) {
            next = due;
            break;
        }
        struct connection *c = &all[opened++];
        connect_to_system(c);
        if (rate == 0 && may_send()) start_call(c, now);
    }
    if (rate > 0 && opened == connections && !is_stopping) {
        for (;;) {
            uint64_t due = started_ns + (uint64_t)((double)sent_by_clock * 1e9 / rate);
            if (due > now) {
                if (due < next) next = due;
                break;
            }
            unsigned tries = 0;
            while (tries < connections && all[next_free].phase > IDLE) {
                next_free = (next_free + 1) % connections;
                tries++;
            }
            if (tries == connections) { /* all are busy: it goes out late, and is told so */
                late_calls += is_measuring;
                next = now + LATE_NS;
                break;
            }
            sent_by_clock++;
            start_call(&all[next_free], due);
            next_free = (next_free + 1) % connections;
        }
    }
    if (!is_measuring && begin_ns == 0 && opened == connections) {
        uint64_t due = started_ns + (uint64_t)((ramp + warmup) * 1e9);
        if (now >= due)
            begin(now + (uint64_t)(seconds * 1e9));
        else if (due < next)
            next = due;
    }
    int is_over = requests_max > 0 ? sent_calls >= requests_max && active == 0 : now >= end_ns;
    if (is_measuring && begin_ns > 0 && is_over) {
        is_measuring = 0;
        is_stopping = 1;
        end_ns = now_ns();
        say("end");
    } else if (is_measuring && end_ns < next) {
        next = end_ns;
    }
    return next;
}

static void run(void) {
    uint64_t timer_at = 0;
    started_ns = last_byte_ns = now_ns();
    for (;;) {
        uint64_t now = now_ns();
        uint64_t next = keep_time(now);
        if (is_stopping && active == 0) return;
        if (now - last_byte_ns > STALL_NS && active > 0) {
            fprintf(stderr, "%u calls open, no byte for a minute\n", active);
            errors_broken += active;
            return;
        }
        if (next != timer_at) {
            set_timer(next);
            timer_at = next;
        }
        struct epoll_event ready[EPOLL_EVENTS];
        int count = epoll_wait(epoll_fd, ready, EPOLL_EVENTS, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct connection *c = ready[i].data.ptr;
            if (c == NULL) {
                uint64_t expired;
                if (read(timer_fd, &expired, sizeof expired) < 0 && errno != EAGAIN) fail("timer");
                timer_at = 0;
                continue;
            }
            if (c->phase == CLOSED) continue;
            if (ready[i].events & EPOLLOUT) send_rest(c);
            if (ready[i].events & ~(uint32_t)EPOLLOUT) receive(c);
        }
    }
}

int main(int argc, char **argv) {
    const char *word = "", *body = NULL, *path = "/v1/chat/completions";
    char *headers[HEADERS_MAX];
    int headers_count = 0;
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (strcmp(name, "--loose") == 0) {
            is_loose = 1;
            continue;
        }
        if (strcmp(name, "--usage") == 0) {
            wants_usage = 1;
            continue;
        }
        if (++i == argc) {
            fprintf(stderr, "%s needs a value\n", name);
            return 2;
        }
        char *value = argv[i];
        if (strcmp(name, "--port") == 0) port = atoi(value);
        else if (strcmp(name, "--answer") == 0) word = value;
        else if (strcmp(name, "--body") == 0) body = value;
        else if (strcmp(name, "--path") == 0) path = value;
        else if (strcmp(name, "--tokens") == 0) read_tokens(value);
        else if (strcmp(name, "--connections") == 0) connections = (unsigned)atoi(value);
        else if (strcmp(name, "--ramp") == 0) ramp = atof(value);
        else if (strcmp(name, "--warmup") == 0) warmup = atof(value);
        else if (strcmp(name, "--seconds") == 0) seconds = atof(value);
        else if (strcmp(name, "--rate") == 0) rate = atof(value);
        else if (strcmp(name, "--requests") == 0) requests_max = strtoul(value, NULL, 10);
        else if (strcmp(name, "--latencies") == 0) latencies.path = value;
        else if (strcmp(name, "--first-bytes") == 0) first_bytes.path = value;
        else if (strcmp(name, "--header") == 0 && headers_count < HEADERS_MAX)
            headers[headers_count++] = value;
        else {
            fprintf(stderr, "unknown or too often: %s\n", name);
            return 2;
        }
    }
    if (!parse_answer(word, &answer) || body == NULL || port == 0 || connections == 0) {
        fputs("--port, --body and --answer (as in answers.h) are needed\n", stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    build_request(body, headers, headers_count, path);
    if (answer.is_stream) {
        write_event(event_pattern, 0);
        stream_end_bytes = (size_t)sprintf(stream_end, "%s%s%s", STREAM_STOP,
                                           wants_usage ? STREAM_USAGE : "", STREAM_DONE);
    } else {
        expected_bytes = answer.unary_bytes;
        expected = must(malloc(expected_bytes));
        write_unary(expected, expected_bytes);
    }
    all = must(calloc(connections, sizeof *all));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event timer = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_fd < 0 || timer_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &timer) != 0)
        fail("epoll");
    run();
    write_samples(&latencies);
    write_samples(&first_bytes);
    printf("{\"calls\":%lu,\"events\":%lu,\"reads\":%lu,\"seconds\":%.6f,\"calls_sent\":%lu,"
           "\"calls_late\":%lu,\"errors\":{\"connect\":%lu,\"status\":%lu,\"bytes\":%lu,"
           "\"broken\":%lu},\"first_bad_status\":%d}\n",
           calls, events, reads, (double)(end_ns - begin_ns) / 1e9, sent_calls, late_calls,
           errors_connect, errors_status, errors_bytes, errors_broken, first_bad_status);
    return 0;
}
