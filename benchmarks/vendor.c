/* A vendor for benchmarks: one thread, epoll, OpenAI's chat completions, paced streams.
 *
 * vendor [--cert FILE --key FILE]: listens on 127.0.0.1 on free ports, plain and, where built with
 * -DWITH_TLS and given a certificate, by TLS; says them on stdout as JSON; runs until killed, or
 * until its stdin ends. What it answers is in answers.h. Requests carry a Content-Length.
 * /connections tells how many it has accepted by TLS, and how many without.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

#include "answers.h"

#define REQUEST_BYTES_MAX (4u << 20)
#define FIRST_BUFFER_BYTES 2048u
#define READ_BYTES (256u << 10)
#define EPOLL_EVENTS 256
#define EDGE_BYTES 1024u /* of a body, in which its deciding fields are looked for first */
#define PACES_MAX 16     /* different intervals at once */
#define BACKLOG 4096

struct connection {
    int fd;
    char *in; /* NULL while there is nothing */
    size_t in_bytes, in_room;
    char *out; /* what the socket would not take yet */
    size_t out_bytes, out_at;
    struct answer answer; /* of the open stream */
    unsigned events_sent;
    uint64_t due_ns;
    int is_streaming, asks_usage, is_closed, is_queued;
    struct connection *next; /* in its pace's queue */
#ifdef WITH_TLS
    SSL *ssl;
#endif
};

/* Streams of one interval, the next due first: each is put at the end when it was served. */
struct pace {
    uint64_t interval_ns;
    struct connection *first, *last;
};

static struct pace paces[PACES_MAX];
static int epoll_fd, timer_fd, plain_fd, tls_fd = -1;
static uint64_t timer_set_ns;
static unsigned long accepted_plain, accepted_tls;
static char shared[READ_BYTES];
#ifdef WITH_TLS
static SSL_CTX *tls;
#endif

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int fd, void *data, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(epoll_fd, operation, fd, &event) != 0) fail("epoll_ctl");
}

static void free_if_unused(struct connection *c) {
    if (c->is_closed && !c->is_queued) free(c);
}

static void close_connection(struct connection *c) {
    if (c->is_closed) return;
#ifdef WITH_TLS
    if (c->ssl) SSL_free(c->ssl);
#endif
    close(c->fd);
    free(c->in);
    free(c->out);
    c->in = c->out = NULL;
    c->is_closed = 1;
    c->is_streaming = 0;
}

/* Return what was written, 0 where the socket is full, -1 where it is gone. */
static ssize_t write_some(struct connection *c, const char *bytes, size_t count) {
#ifdef WITH_TLS
    if (c->ssl) {
        ERR_clear_error();
        int done = SSL_write(c->ssl, bytes, (int)count);
        if (done > 0) return done;
        int why = SSL_get_error(c->ssl, done);
        return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
    }
#endif
    ssize_t done = write(c->fd, bytes, count);
    if (done >= 0) return done;
    return errno == EAGAIN || errno == EINTR ? 0 : -1;
}

/* Return what was read, 0 where there is nothing now, -1 at the end. */
static ssize_t read_some(struct connection *c) {
#ifdef WITH_TLS
    if (c->ssl) {
        ERR_clear_error();
        int done = SSL_read(c->ssl, shared, sizeof shared);
        if (done > 0) return done;
        int why = SSL_get_error(c->ssl, done);
        return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
    }
#endif
    ssize_t done = read(c->fd, shared, sizeof shared);
    if (done > 0) return done;
    return done < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

static void send_bytes(struct connection *c, const char *bytes, size_t count) {
    ssize_t done = 0;
    if (c->out == NULL) {
        done = write_some(c, bytes, count);
        if (done < 0) {
            close_connection(c);
            return;
        }
        if ((size_t)done == count) return;
        watch(c->fd, c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    }
    size_t rest = count - (size_t)done;
    c->out = must(realloc(c->out, c->out_bytes + rest));
    memcpy(c->out + c->out_bytes, bytes + done, rest);
    c->out_bytes += rest;
}

static void flush_out(struct connection *c) {
    while (c->out_at < c->out_bytes) {
        ssize_t done = write_some(c, c->out + c->out_at, c->out_bytes - c->out_at);
        if (done < 0) close_connection(c);
        if (done <= 0) return;
        c->out_at += (size_t)done;
    }
    free(c->out);
    c->out = NULL;
    c->out_bytes = c->out_at = 0;
    watch(c->fd, c, EPOLLIN, EPOLL_CTL_MOD);
}

/* ------------------------------------------------------------------------------------ streams */

static void queue_stream(struct connection *c) {
    struct pace *pace = NULL;
    for (int i = 0; i < PACES_MAX && pace == NULL; i++) {
        if (paces[i].interval_ns == c->answer.interval_ns || paces[i].first == NULL)
            pace = &paces[i];
    }
    if (pace == NULL) {
        fputs("too many paces\n", stderr);
        exit(1);
    }
    pace->interval_ns = c->answer.interval_ns;
    c->next = NULL;
    c->is_queued = 1;
    if (pace->first == NULL)
        pace->first = c;
    else
        pace->last->next = c;
    pace->last = c;
}

static size_t write_chunk(char *out, const char *bytes, size_t count) {
    int head = sprintf(out, "%zx\r\n", count);
    memcpy(out + head, bytes, count);
    memcpy(out + head + count, "\r\n", 2);
    return (size_t)head + count + 2;
}

/* Send the next event, and with the last one the end; queue the stream where there is more. */
static void send_event(struct connection *c, const char *head) {
    char out[4096], event[EVENT_BYTES], end[1024];
    size_t bytes = strlen(head);
    memcpy(out, head, bytes);
    write_event(event, now_ns());
    bytes += write_chunk(out + bytes, event, EVENT_BYTES);
    if (++c->events_sent == c->answer.events) {
        const char *usage = c->asks_usage ? STREAM_USAGE : "";
        int count = sprintf(end, "%s%s%s", STREAM_STOP, usage, STREAM_DONE);
        bytes += write_chunk(out + bytes, end, (size_t)count);
        memcpy(out + bytes, "0\r\n\r\n", 5);
        bytes += 5;
        c->is_streaming = 0;
    }
    send_bytes(c, out, bytes);
    if (c->is_streaming) queue_stream(c);
}

static void serve_due(void) {
    uint64_t now = now_ns();
    for (int i = 0; i < PACES_MAX; i++) {
        struct connection *c;
        while ((c = paces[i].first) != NULL && (c->is_closed || c->due_ns <= now)) {
            paces[i].first = c->next;
            c->is_queued = 0;
            if (c->is_closed) {
                free_if_unused(c);
                continue;
            }
            c->due_ns += c->answer.interval_ns;
            send_event(c, "");
        }
    }
}

static void set_timer(void) {
    uint64_t first = UINT64_MAX;
    for (int i = 0; i < PACES_MAX; i++) {
        if (paces[i].first != NULL && paces[i].first->due_ns < first) first = paces[i].first->due_ns;
    }
    if (first == UINT64_MAX || first == timer_set_ns) return;
    struct itimerspec at = {.it_value = {(time_t)(first / 1000000000u), (long)(first % 1000000000u)}};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL) != 0) fail("timerfd_settime");
    timer_set_ns = first;
}

/* ----------------------------------------------------------------------------------- requests */

static const char *find(const char *bytes, size_t count, const char *what) {
    return memmem(bytes, count, what, strlen(what));
}

/* Find what stands in the body, in its edges first: that is where clients put it. */
static const char *find_in_body(const char *body, size_t count, const char *what, int whole) {
    size_t edge = count < EDGE_BYTES ? count : EDGE_BYTES;
    const char *found = find(body, edge, what);
    if (found == NULL) found = find(body + count - edge, edge, what);
    return found != NULL || !whole ? found : find(body, count, what);
}

static int answer_of(const char *path, const char *body, size_t count, struct answer *answer) {
    if (parse_answer(path + 1, answer)) return 1;
    const char *model = find_in_body(body, count, "\"model\"", 1);
    if (model == NULL) return 0;
    const char *end = body + count;
    model += strlen("\"model\"");
    while (model < end && (*model == ' ' || *model == ':')) model++;
    if (model == end || *model != '"') return 0;
    char name[128] = "";
    size_t length = 0;
    for (model++; model < end && *model != '"' && length < sizeof name - 1; model++)
        name[length++] = *model;
    const char *last = strrchr(name, '-');
    return parse_answer(last == NULL ? name : last + 1, answer);
}

static void tell_connections(struct connection *c) {
    char body[64], answer[256];
    int length = sprintf(body, "{\"plain\":%lu,\"tls\":%lu}", accepted_plain, accepted_tls);
    int count = sprintf(answer,
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                        "Content-Length: %d\r\n\r\n%s",
                        length, body);
    send_bytes(c, answer, (size_t)count);
}

static void answer_request(struct connection *c, const char *path, const char *body, size_t count) {
    static char unary[UNARY_BYTES_MAX + 256];
    static size_t unary_of, unary_whole; /* the last answer is kept: all calls of a run are alike */
    struct answer answer;
    if (strncmp(path, "/connections ", 13) == 0) {
        tell_connections(c);
        return;
    }
    if (!answer_of(path, body, count, &answer)) {
        static const char no[] = "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n"
                                 "Content-Length: 41\r\n\r\n"
                                 "{\"error\":{\"message\":\"no such benchmark\"}}\n";
        send_bytes(c, no, sizeof no - 2);
        return;
    }
    if (!answer.is_stream) {
        if (unary_of != answer.unary_bytes) {
            int head = sprintf(unary,
                               "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                               "x-request-id: req_bench\r\nContent-Length: %zu\r\n\r\n",
                               answer.unary_bytes);
            write_unary(unary + head, answer.unary_bytes);
            unary_of = answer.unary_bytes;
            unary_whole = (size_t)head + answer.unary_bytes;
        }
        send_bytes(c, unary, unary_whole);
        return;
    }
    c->answer = answer;
    c->events_sent = 0;
    c->is_streaming = 1;
    c->asks_usage = find_in_body(body, count, "\"include_usage\"", 0) != NULL;
    c->due_ns = now_ns() + answer.interval_ns;
    send_event(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                  "Cache-Control: no-cache\r\nx-request-id: req_bench\r\n"
                  "Transfer-Encoding: chunked\r\n\r\n");
}

/* Answer the first whole request in `in`; return the bytes used, 0: not whole, -1: no HTTP of ours. */
static ssize_t take_request(struct connection *c) {
    const char *end = find(c->in, c->in_bytes, "\r\n\r\n");
    if (end == NULL) return c->in_bytes > 65536 ? -1 : 0;
    size_t length = 0;
    for (const char *line = c->in; line < end;) {
        line = find(line, (size_t)(end - line) + 2, "\r\n");
        if (line == NULL || line >= end) break;
        line += 2;
        if (strncasecmp(line, "content-length:", 15) == 0) length = strtoul(line + 15, NULL, 10);
        if (strncasecmp(line, "transfer-encoding:", 18) == 0) return -1;
    }
    size_t head = (size_t)(end - c->in) + 4;
    if (length > REQUEST_BYTES_MAX) return -1;
    if (c->in_bytes < head + length) return 0;
    const char *path = memchr(c->in, ' ', head);
    if (path == NULL) return -1;
    answer_request(c, path + 1, c->in + head, length);
    return (ssize_t)(head + length);
}

static void take_bytes(struct connection *c, size_t count) {
    if (c->in_bytes + count + 1 > c->in_room) {
        size_t room = c->in_room ? c->in_room : FIRST_BUFFER_BYTES;
        while (room < c->in_bytes + count + 1) room *= 2;
        c->in = must(realloc(c->in, room));
        c->in_room = room;
    }
    memcpy(c->in + c->in_bytes, shared, count);
    c->in_bytes += count;
    c->in[c->in_bytes] = '\0';
    while (c->in_bytes > 0 && !c->is_streaming) {
        ssize_t used = take_request(c);
        if (used < 0) close_connection(c);
        if (used <= 0 || c->is_closed) return;
        c->in_bytes -= (size_t)used;
        memmove(c->in, c->in + used, c->in_bytes + 1);
    }
    if (c->is_streaming && c->in_bytes == 0) { /* an open stream needs no request buffer */
        free(c->in);
        c->in = NULL;
        c->in_room = 0;
    }
}

static void serve(struct connection *c, uint32_t events) {
    if (events & EPOLLOUT) flush_out(c);
    while (!c->is_closed && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        ssize_t count = read_some(c);
        if (count < 0) close_connection(c);
        if (count <= 0) break;
        take_bytes(c, (size_t)count);
#ifdef WITH_TLS
        if (!c->is_closed && c->ssl) continue; /* it may hold more than the socket shows */
#endif
        break;
    }
}

/* -------------------------------------------------------------------------------------- start */

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR) return;
            fail("accept");
        }
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *c = must(calloc(1, sizeof *c));
        c->fd = fd;
        if (listener == plain_fd) accepted_plain++;
        else accepted_tls++;
#ifdef WITH_TLS
        if (listener == tls_fd) {
            c->ssl = must(SSL_new(tls));
            SSL_set_fd(c->ssl, fd);
            SSL_set_accept_state(c->ssl);
        }
#endif
        watch(fd, c, EPOLLIN, EPOLL_CTL_ADD);
    }
}

static int listen_on_any(int *fd) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    *fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (*fd < 0 || bind(*fd, (struct sockaddr *)&address, size) != 0 || listen(*fd, BACKLOG) != 0)
        fail("listen");
    if (getsockname(*fd, (struct sockaddr *)&address, &size) != 0) fail("getsockname");
    return ntohs(address.sin_port);
}

int main(int argc, char **argv) {
    const char *certificate = NULL, *key = NULL;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--cert") == 0) certificate = argv[i + 1];
        if (strcmp(argv[i], "--key") == 0) key = argv[i + 1];
    }
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (epoll_fd < 0 || timer_fd < 0) fail("epoll");
    int plain_port = listen_on_any(&plain_fd), tls_port = 0, stdin_mark = 0;
    watch(plain_fd, &plain_fd, EPOLLIN, EPOLL_CTL_ADD);
    watch(timer_fd, &timer_fd, EPOLLIN, EPOLL_CTL_ADD);
    struct epoll_event ends = {.events = EPOLLIN, .data.ptr = &stdin_mark};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &ends); /* refused where stdin is a file: never mind */
    if (certificate != NULL && key != NULL) {
#ifdef WITH_TLS
        tls = must(SSL_CTX_new(TLS_server_method()));
        if (SSL_CTX_use_certificate_chain_file(tls, certificate) != 1 ||
            SSL_CTX_use_PrivateKey_file(tls, key, SSL_FILETYPE_PEM) != 1) {
            ERR_print_errors_fp(stderr);
            return 1;
        }
        SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
        tls_port = listen_on_any(&tls_fd);
        watch(tls_fd, &tls_fd, EPOLLIN, EPOLL_CTL_ADD);
#else
        fputs("built without TLS\n", stderr);
        return 1;
#endif
    }
    printf("{\"port\":%d,\"tls_port\":%d}\n", plain_port, tls_port);
    fflush(stdout);
    for (;;) {
        struct epoll_event events[EPOLL_EVENTS];
        set_timer();
        int count = epoll_wait(epoll_fd, events, EPOLL_EVENTS, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            void *source = events[i].data.ptr;
            if (source == &stdin_mark) {
                char byte;
                if (read(0, &byte, 1) <= 0) return 0;
            } else if (source == &plain_fd || source == &tls_fd) {
                accept_all(*(int *)source);
            } else if (source == &timer_fd) {
                uint64_t expired;
                if (read(timer_fd, &expired, sizeof expired) < 0 && errno != EAGAIN) fail("timer");
                timer_set_ns = 0;
            } else {
                serve(source, events[i].events);
                free_if_unused(source);
            }
        }
        serve_due();
    }
}
