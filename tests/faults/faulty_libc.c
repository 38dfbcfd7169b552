/* A C library whose clock can be moved and whose disk can fail, by LD_PRELOAD.

   FAULTY_LIBC names a file of two 64-bit numbers, which its owner may change at any moment: by how
   many nanoseconds the wall clock is ahead, and whether a sync fails. Clocks that count from the
   machine's start are left as they are, as they are when a real machine's clock is set. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

struct control {
    volatile int64_t ahead_nanoseconds;
    volatile int64_t syncs_fail;
};

static const struct control calm;
static const struct control *control = &calm;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);

__attribute__((constructor)) static void begin(void) {
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    const char *name = getenv("FAULTY_LIBC");
    int fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED)
        control = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real_clock_gettime)
        begin(); /* a constructor that runs before ours asks for the time */
    int failed = real_clock_gettime(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t all = now->tv_sec * SECOND + now->tv_nsec + control->ahead_nanoseconds;
        now->tv_sec = all / SECOND;
        now->tv_nsec = all % SECOND;
    }
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec precise;
    int failed = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *where) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now))
        return (time_t)-1;
    if (where)
        *where = now.tv_sec;
    return now.tv_sec;
}

int fsync(int fd) {
    if (!control->syncs_fail)
        return real_fsync(fd);
    errno = EIO;
    return -1;
}

int fdatasync(int fd) {
    if (!control->syncs_fail)
        return real_fdatasync(fd);
    errno = EIO;
    return -1;
}
