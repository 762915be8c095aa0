/* Makes the n-th call of the C library that concerns a folder fail, as a network file system or a
 * full disk would. Preloaded by tests/security/test_faults.py, which sets it up through arm(). */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char below[4096];      /* calls on paths that contain this count */
static atomic_long left = -1; /* calls until the one that fails; negative: none fails */
static atomic_long seen;
static int wrong;
static _Atomic char ours[4096]; /* descriptors of files below the folder */
static char failed[64];

void arm(const char *path, long number, int error) {
    strncpy(below, path, sizeof below - 1);
    wrong = error;
    seen = 0;
    failed[0] = 0;
    left = number;
}
long disarm(void) { left = -1; return seen; }
const char *failed_call(void) { return failed; }

static int is_ours(int fd) { return fd >= 0 && fd < 4096 && ours[fd]; }
static int concerns(int fd, const char *path) {
    if (!below[0]) return 0;
    return (path && strstr(path, below)) || ((!path || path[0] != '/') && is_ours(fd));
}
static int fails(const char *name, int counts) {
    if (!counts || left < 0) return 0;
    seen++;
    if (atomic_fetch_sub(&left, 1) != 0) return 0;
    strncpy(failed, name, sizeof failed - 1);
    errno = wrong;
    return 1;
}
static int opened(int fd, int counts) {
    if (fd >= 0 && fd < 4096) ours[fd] = counts;
    return fd;
}
#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name);

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        REAL(int, #name, const char *, int, ...) \
        int counts = concerns(-1, path); \
        return fails(#name, counts) ? -1 : opened(real(path, flags, mode), counts); \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        REAL(int, #name, int, const char *, int, ...) \
        int counts = concerns(dir, path); \
        return fails(#name, counts) ? -1 : opened(real(dir, path, flags, mode), counts); \
    }
OPENAT(openat)
OPENAT(openat64)
#define WITH(type, name, counts, params, types, args) \
    type name params { \
        REAL(type, #name, types) \
        return fails(#name, counts) ? (type)-1 : real args; \
    }
#define LIST(...) __VA_ARGS__
WITH(ssize_t, read, is_ours(fd), (int fd, void *b, size_t n), LIST(int, void *, size_t), (fd, b, n))
WITH(ssize_t, write, is_ours(fd), (int fd, const void *b, size_t n), LIST(int, const void *, size_t), (fd, b, n))
WITH(off_t, lseek, is_ours(fd), (int fd, off_t o, int w), LIST(int, off_t, int), (fd, o, w))
WITH(off64_t, lseek64, is_ours(fd), (int fd, off64_t o, int w), LIST(int, off64_t, int), (fd, o, w))
WITH(int, fsync, is_ours(fd), (int fd), LIST(int), (fd))
WITH(int, ftruncate64, is_ours(fd), (int fd, off64_t n), LIST(int, off64_t), (fd, n))
WITH(int, fchmod, is_ours(fd), (int fd, mode_t m), LIST(int, mode_t), (fd, m))
WITH(int, chmod, concerns(-1, p), (const char *p, mode_t m), LIST(const char *, mode_t), (p, m))
WITH(int, rename, concerns(-1, a), (const char *a, const char *b), LIST(const char *, const char *), (a, b))
WITH(int, renameat, concerns(d, a), (int d, const char *a, int e, const char *b), LIST(int, const char *, int, const char *), (d, a, e, b))
WITH(int, unlink, concerns(-1, p), (const char *p), LIST(const char *), (p))
WITH(int, unlinkat, concerns(d, p), (int d, const char *p, int f), LIST(int, const char *, int), (d, p, f))
WITH(int, mkdir, concerns(-1, p), (const char *p, mode_t m), LIST(const char *, mode_t), (p, m))
WITH(int, mkdirat, concerns(d, p), (int d, const char *p, mode_t m), LIST(int, const char *, mode_t), (d, p, m))
WITH(int, rmdir, concerns(-1, p), (const char *p), LIST(const char *), (p))
WITH(int, stat, concerns(-1, p), (const char *p, struct stat *s), LIST(const char *, struct stat *), (p, s))
WITH(int, lstat, concerns(-1, p), (const char *p, struct stat *s), LIST(const char *, struct stat *), (p, s))
WITH(int, fstat, is_ours(fd), (int fd, struct stat *s), LIST(int, struct stat *), (fd, s))
WITH(int, fstatat, concerns(d, p), (int d, const char *p, struct stat *s, int f), LIST(int, const char *, struct stat *, int), (d, p, s, f))
WITH(int, stat64, concerns(-1, p), (const char *p, struct stat64 *s), LIST(const char *, struct stat64 *), (p, s))
WITH(int, lstat64, concerns(-1, p), (const char *p, struct stat64 *s), LIST(const char *, struct stat64 *), (p, s))
WITH(int, fstat64, is_ours(fd), (int fd, struct stat64 *s), LIST(int, struct stat64 *), (fd, s))
WITH(int, fstatat64, concerns(d, p), (int d, const char *p, struct stat64 *s, int f), LIST(int, const char *, struct stat64 *, int), (d, p, s, f))

DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *)
    return fails("opendir", concerns(-1, path)) ? NULL : real(path);
}
DIR *fdopendir(int fd) {
    REAL(DIR *, "fdopendir", int)
    return fails("fdopendir", is_ours(fd)) ? NULL : real(fd);
}
int close(int fd) { /* closes even if it fails, as Linux does */
    REAL(int, "close", int)
    int counts = is_ours(fd);
    opened(fd, 0);
    int result = real(fd);
    return fails("close", counts) ? -1 : result;
}
