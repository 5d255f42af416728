/* Faults of a disk at a chosen operation, for tests: LD_PRELOAD=shim.so. Counts write, pwrite, writev, fsync, rename, link
   and unlink (and their at-forms) of files below one folder, and makes the one with the chosen number fail. FLOCK in the
   environment makes every flock succeed (yes) or fail with ENOLCK (none). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { KILL = -1, SHORT = -2 };
enum { WRITE = 1, FSYNC = 2, RENAME = 4, LINK = 8, UNLINK = 16 };

static char root[PATH_MAX];
static char journal[PATH_MAX];
static long at;
static int kind;
static long *count; /* shared with the processes that this one forks: the trials of a sweep */

/* Start to count below `folder`; operation `number` (from 1; 0: none) gets `what`: an errno, KILL or SHORT. Each counted
   operation is a line of `log`, if that is not empty. */
void fault_arm(const char *folder, long number, int what, const char *log) {
    count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    snprintf(journal, sizeof journal, "%s", log);
    at = number;
    kind = what;
    snprintf(root, sizeof root, "%s", folder);
}

static int below(const char *path) {
    size_t length = strlen(root);
    return *root && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int of_fd(int fd, char *path) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static void of_name(int folder, const char *name, char *path) {
    char above[PATH_MAX] = "";
    if (*name == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    if (folder == AT_FDCWD ? !getcwd(above, sizeof above) : !of_fd(folder, above)) *above = 0;
    snprintf(path, PATH_MAX, "%.2000s/%.2000s", above, name);
}

/* 0: go on; 1: fail with errno set; 2: write a half, then end; 3: write a half */
static int fault(int operation, const char *path) {
    if (!below(path)) return 0;
    long number = __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST);
    if (*journal) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld %d %s\n", number, operation, path);
        int file = open(journal, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        syscall(SYS_write, file, line, (size_t)length);
        close(file);
    }
    if (!at || number < at) return 0;
    if (number > at) {
        /* a full disk stays full, a read-only one read-only; both let files be removed or not */
        int lasts = kind == ENOSPC || kind == EDQUOT ? WRITE | LINK : kind == EROFS ? ~0 : 0;
        if (!(operation & lasts)) return 0;
    } else if (kind == KILL) {
        if (operation == WRITE) return 2;
        kill(getpid(), SIGKILL);
    } else if (kind == SHORT) {
        return operation == WRITE ? 3 : 0;
    }
    errno = kind;
    return 1;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name);

static ssize_t half(int what, int fd, const void *data, size_t size, ssize_t written) {
    (void)fd, (void)data, (void)size;
    if (what == 2) kill(getpid(), SIGKILL);
    return written;
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t)
    char path[PATH_MAX];
    int what = *root && of_fd(fd, path) ? fault(WRITE, path) : 0;
    if (what == 1) return -1;
    if (what) return half(what, fd, data, size, real(fd, data, size > 1 ? size / 2 : size));
    return real(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t)
    char path[PATH_MAX];
    int what = *root && of_fd(fd, path) ? fault(WRITE, path) : 0;
    if (what == 1) return -1;
    if (what) return half(what, fd, data, size, real(fd, data, size > 1 ? size / 2 : size, place));
    return real(fd, data, size, place);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t place) { return pwrite64(fd, data, size, place); }

ssize_t writev(int fd, const struct iovec *parts, int number) {
    REAL(ssize_t, "writev", int, const struct iovec *, int)
    char path[PATH_MAX];
    int what = *root && of_fd(fd, path) ? fault(WRITE, path) : 0;
    if (what == 1) return -1;
    return what ? half(what, fd, parts, 0, real(fd, parts, number > 1 ? number / 2 : number)) : real(fd, parts, number);
}

int fsync(int fd) {
    REAL(int, "fsync", int)
    char path[PATH_MAX];
    return *root && of_fd(fd, path) && fault(FSYNC, path) ? -1 : real(fd);
}

int fdatasync(int fd) {
    REAL(int, "fdatasync", int)
    char path[PATH_MAX];
    return *root && of_fd(fd, path) && fault(FSYNC, path) ? -1 : real(fd);
}

int renameat(int from, const char *old, int to, const char *new) {
    REAL(int, "renameat", int, const char *, int, const char *)
    char path[PATH_MAX];
    of_name(to, new, path);
    return fault(RENAME, path) ? -1 : real(from, old, to, new);
}

int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }

int linkat(int from, const char *old, int to, const char *new, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int)
    char path[PATH_MAX];
    of_name(to, new, path);
    return fault(LINK, path) ? -1 : real(from, old, to, new, flags);
}

int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }

int symlinkat(const char *old, int to, const char *new) {
    REAL(int, "symlinkat", const char *, int, const char *)
    char path[PATH_MAX];
    of_name(to, new, path);
    return fault(LINK, path) ? -1 : real(old, to, new);
}

int symlink(const char *old, const char *new) { return symlinkat(old, AT_FDCWD, new); }

int unlinkat(int folder, const char *name, int flags) {
    REAL(int, "unlinkat", int, const char *, int)
    char path[PATH_MAX];
    of_name(folder, name, path);
    return fault(UNLINK, path) ? -1 : real(folder, name, flags);
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }

int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int flock(int fd, int operation) {
    REAL(int, "flock", int, int)
    const char *answer = getenv("FLOCK");
    if (answer && !strcmp(answer, "yes")) return 0;
    if (answer && !strcmp(answer, "none")) {
        errno = ENOLCK;
        return -1;
    }
    return real(fd, operation);
}
