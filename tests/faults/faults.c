/* Preloaded into a process: something happens at one of the calls that change files below $FAULT_DIR.
 *
 * FAULT_AT=N       the call, from 1
 * FAULT_ERRNO=E    it fails with this error ...
 * FAULT_ONWARD=1   ... and all that write data after it
 * FAULT_SIGNAL=S   the process gets this signal before it */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static atomic_int calls;

static int setting(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

/* Whether the call fails; errno says how. */
static int fails(int writes_data) {
    int call = ++calls, at = setting("FAULT_AT");
    int struck = call == at || (setting("FAULT_ONWARD") && writes_data && call > at);
    if (!struck) return 0;
    int number = setting("FAULT_SIGNAL");
    if (number) {
        kill(getpid(), number);
        sleep(60); /* the signal ends the process */
    }
    errno = setting("FAULT_ERRNO");
    return errno != 0;
}

static int below(const char *path) {
    const char *dir = getenv("FAULT_DIR");
    return dir && !strncmp(path, dir, strlen(dir));
}

static int open_below(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    if ((flags & O_CREAT) && below(path) && fails(1)) return -1;
    return NEXT(open64)(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    if (below(path) && fails(1)) return -1;
    return NEXT(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
    if (below(to) && fails(0)) return -1;
    return NEXT(rename)(from, to);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    if (open_below(fd) && fails(1)) return -1;
    return NEXT(write)(fd, bytes, count);
}

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t count, unsigned flags) {
    if (open_below(out) && fails(1)) return -1;
    return NEXT(copy_file_range)(in, in_at, out, out_at, count, flags);
}

int fsync(int fd) {
    if (open_below(fd) && fails(0)) return -1;
    return NEXT(fsync)(fd);
}
