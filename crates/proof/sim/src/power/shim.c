/*
 * Notes what a process does to the files under one folder, in the order in which it happens, and fails
 * single operations when it is told to. Preloaded into a child of a test; it is part of nothing that ships.
 *
 *   POWER_CUT_ROOT   the folder
 *   POWER_CUT_TRACE  the file that gets the notes
 *   POWER_CUT_FAULT  optional: "sync|write END-OF-PATH NTH ERRNO TIMES"
 *
 * A note: kind (1 byte), 3 zero bytes, fd (4), position or length (8), errno (4), payload length (4), payload.
 * Every operation and its note are one step under one lock, so the order of notes is the order of effects.
 * The kernel is called directly: nothing is looked up, so nothing can recurse.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FILES = 4096, PATH_BYTES = 1024 };

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_BYTES];
static int notes = -1;
/* Of each descriptor: whether it is under the folder, and whether the fault is meant for it. */
static char watched[FILES];
static char struck[FILES];
static char fault_op[8];
static char fault_end[64];
static long fault_nth, fault_times;
static int fault_errno;

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("POWER_CUT_ROOT");
    const char *trace = getenv("POWER_CUT_TRACE");
    const char *fault = getenv("POWER_CUT_FAULT");
    if (!folder || !trace || strlen(folder) >= sizeof root) return;
    strcpy(root, folder);
    if (fault && sscanf(fault, "%7s %63s %ld %d %ld", fault_op, fault_end, &fault_nth, &fault_errno,
                        &fault_times) != 5)
        abort();
    notes = (int)syscall(SYS_openat, AT_FDCWD, trace, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (notes < 0) abort();
}

/* A note that is not written would make the whole trace a lie. */
static void note(char kind, int fd, uint64_t at, int error, const void *data, size_t length) {
    char head[24] = {kind};
    int32_t number = fd, code = error;
    uint32_t bytes = (uint32_t)length;
    memcpy(head + 4, &number, 4);
    memcpy(head + 8, &at, 8);
    memcpy(head + 16, &code, 4);
    memcpy(head + 20, &bytes, 4);
    struct iovec parts[2] = {{head, sizeof head}, {(void *)data, length}};
    if (syscall(SYS_writev, notes, parts, 2) != (long)(sizeof head + length)) abort();
}

static int under(const char *path) {
    size_t length = strlen(root);
    return notes >= 0 && path && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int ends(const char *path, const char *end) {
    size_t length = strlen(path), tail = strlen(end);
    return length >= tail && !strcmp(path + length - tail, end);
}

/* Shared memory is written without calls, and rebuilt by whoever opens first; a lock file has no content. */
static int watch(const char *path) {
    return under(path) && !ends(path, "-shm") && !ends(path, ".lock");
}

static int is_watched(int fd) { return fd >= 0 && fd < FILES && watched[fd]; }

/* Whether this operation is the one to fail. */
static int strikes(const char *op, int fd) {
    if (fault_times <= 0 || strcmp(op, fault_op) || !struck[fd]) return 0;
    if (--fault_nth > 0) return 0;
    fault_times--;
    return 1;
}

static int open_at(int dir, const char *path, int flags, mode_t mode) {
    if (dir != AT_FDCWD || !watch(path)) {
        int fd = (int)syscall(SYS_openat, dir, path, flags, mode);
        if (fd >= 0 && fd < FILES) watched[fd] = 0;
        return fd;
    }
    pthread_mutex_lock(&turn);
    struct stat before;
    int existed = !stat(path, &before);
    int fd = (int)syscall(SYS_openat, dir, path, flags, mode);
    int why = errno;
    if (fd >= FILES) abort();
    if (fd >= 0) {
        watched[fd] = 1;
        struck[fd] = fault_times > 0 && ends(path, fault_end);
        note(existed ? 'o' : 'c', fd, 0, 0, path, strlen(path));
        if (existed && flags & O_TRUNC) note('t', fd, 0, 0, "", 0);
    }
    pthread_mutex_unlock(&turn);
    errno = why;
    return fd;
}

static mode_t mode_of(int flags, va_list more) {
    return flags & (O_CREAT | O_TMPFILE) ? (mode_t)va_arg(more, int) : 0;
}

#define OPEN(name)                                      \
    int name(const char *path, int flags, ...) {        \
        va_list more;                                   \
        va_start(more, flags);                          \
        mode_t mode = mode_of(flags, more);             \
        va_end(more);                                   \
        return open_at(AT_FDCWD, path, flags, mode);    \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                            \
    int name(int dir, const char *path, int flags, ...) {       \
        va_list more;                                           \
        va_start(more, flags);                                  \
        mode_t mode = mode_of(flags, more);                     \
        va_end(more);                                           \
        return open_at(dir, path, flags, mode);                 \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    if (!is_watched(fd)) return (int)syscall(SYS_close, fd);
    pthread_mutex_lock(&turn);
    watched[fd] = 0;
    int done = (int)syscall(SYS_close, fd);
    pthread_mutex_unlock(&turn);
    return done;
}

static ssize_t write_at(int fd, const void *data, size_t length, off_t at) {
    pthread_mutex_lock(&turn);
    ssize_t done = -1;
    int why = fault_errno;
    if (strikes("write", fd)) {
        note('e', fd, 'w', why, "", 0);
    } else {
        int flags = (int)syscall(SYS_fcntl, fd, F_GETFL);
        if (flags & O_APPEND) at = (off_t)syscall(SYS_lseek, fd, 0, SEEK_END);
        else if (at < 0) at = (off_t)syscall(SYS_lseek, fd, 0, SEEK_CUR);
        else if (syscall(SYS_lseek, fd, at, SEEK_SET) < 0) abort();
        done = syscall(SYS_write, fd, data, length);
        why = errno;
        if (done > 0) note('w', fd, (uint64_t)at, 0, data, (size_t)done);
    }
    pthread_mutex_unlock(&turn);
    errno = why;
    return done;
}

ssize_t write(int fd, const void *data, size_t length) {
    return is_watched(fd) ? write_at(fd, data, length, -1) : syscall(SYS_write, fd, data, length);
}

#define PWRITE(name)                                                                  \
    ssize_t name(int fd, const void *data, size_t length, off_t at) {                 \
        return is_watched(fd) ? write_at(fd, data, length, at)                        \
                              : syscall(SYS_pwrite64, fd, data, length, at);          \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define TRUNCATE(name)                                                 \
    int name(int fd, off_t length) {                                   \
        if (!is_watched(fd)) return (int)syscall(SYS_ftruncate, fd, length); \
        pthread_mutex_lock(&turn);                                     \
        int done = (int)syscall(SYS_ftruncate, fd, length), why = errno; \
        if (!done) note('t', fd, (uint64_t)length, 0, "", 0);          \
        pthread_mutex_unlock(&turn);                                   \
        errno = why;                                                   \
        return done;                                                   \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

static int sync_of(long call, int fd) {
    if (!is_watched(fd)) return (int)syscall(call, fd);
    pthread_mutex_lock(&turn);
    int done = -1, why = fault_errno;
    if (strikes("sync", fd)) {
        note('e', fd, 's', why, "", 0);
    } else {
        /* Nothing is lost by not waiting for the disk: what survives is decided by the trace. */
        done = 0;
        note('s', fd, 0, 0, "", 0);
    }
    pthread_mutex_unlock(&turn);
    errno = why;
    return done;
}

int fsync(int fd) { return sync_of(SYS_fsync, fd); }

int fdatasync(int fd) { return sync_of(SYS_fdatasync, fd); }

int unlink(const char *path) {
    if (!watch(path)) return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    pthread_mutex_lock(&turn);
    int done = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0), why = errno;
    if (!done) note('u', -1, 0, 0, path, strlen(path));
    pthread_mutex_unlock(&turn);
    errno = why;
    return done;
}

int rename(const char *from, const char *to) {
    /* Nobody under test renames. If that changes, the trace must know: fail loudly. */
    if (watch(from) || watch(to)) abort();
    return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
