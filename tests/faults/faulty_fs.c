/* SPDX-License-Identifier: MIT
 *
 * A file system for tests: passes everything to a backing directory, and breaks what the control
 * file says, which is read at every operation.
 *
 *     faulty_fs BACKING CONTROL SECONDS MOUNTPOINT [fuse options]
 *
 * A line of the control file is OPERATION FAULT [match=TEXT] [offset=N]:
 *
 *     read EIO offset=8192         a read that covers this byte of any file
 *     write ENOSPC match=.ucm      files whose path contains this
 *     read short=700               no more bytes at a time
 *     getattr delay=50             ms
 *     read hang                    until the line is gone
 *
 * OPERATION is a name of struct fuse_operations below, or *. Names and attributes are cached by the
 * kernel for SECONDS, or until the file is opened; data never.
 */
#define FUSE_USE_VERSION 31
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static const char *backing, *control;
static double cache_seconds;

struct rule {
    int error, hang;
    long delay_ms, most;
};

static int errno_of(const char *word) {
    static const struct {
        const char *word;
        int error;
    } known[] = {
        {"EIO", EIO},       {"ENOSPC", ENOSPC}, {"ESTALE", ESTALE},       {"EROFS", EROFS},
        {"EACCES", EACCES}, {"EDQUOT", EDQUOT}, {"ETIMEDOUT", ETIMEDOUT}, {"ENOLCK", ENOLCK}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(word, known[i].word) == 0) return known[i].error;
    return 0;
}

static int applies(const char *word, const char *path, off_t offset, size_t size) {
    if (strncmp(word, "match=", 6) == 0) return path && strstr(path, word + 6) != NULL;
    if (strncmp(word, "offset=", 7) == 0) {
        const off_t at = atoll(word + 7);
        return offset <= at && at < offset + (off_t)size;
    }
    return 1;
}

/* The last line that applies. */
static struct rule look_up(const char *operation, const char *path, off_t offset, size_t size) {
    struct rule rule = {0, 0, 0, 0};
    char line[512];
    FILE *file = fopen(control, "re");
    if (!file) return rule;
    while (fgets(line, sizeof line, file)) {
        struct rule found = {0, 0, 0, 0};
        char *rest, *word = strtok_r(line, " \n", &rest);
        int fits = word && (strcmp(word, operation) == 0 || strcmp(word, "*") == 0);
        while (fits && (word = strtok_r(NULL, " \n", &rest))) {
            if (strcmp(word, "hang") == 0) found.hang = 1;
            if (errno_of(word)) found.error = errno_of(word);
            if (strncmp(word, "delay=", 6) == 0) found.delay_ms = atol(word + 6);
            if (strncmp(word, "short=", 6) == 0) found.most = atol(word + 6);
            fits = applies(word, path, offset, size);
        }
        if (fits) rule = found;
    }
    fclose(file);
    return rule;
}

/* 0 or a negative errno; cuts *size. */
static int fault(const char *operation, const char *path, off_t offset, size_t *size) {
    const size_t whole = size ? *size : 0;
    struct rule rule = look_up(operation, path, offset, whole);
    if (rule.delay_ms) usleep((useconds_t)rule.delay_ms * 1000);
    while (rule.hang) {
        usleep(2000);
        rule = look_up(operation, path, offset, whole);
    }
    if (size && rule.most && (size_t)rule.most < *size) *size = (size_t)rule.most;
    return -rule.error;
}

#define FAULT(operation, path)                                \
    do {                                                      \
        const int injected = fault(operation, path, 0, NULL); \
        if (injected) return injected;                        \
    } while (0)
#define ANSWER(call) return (call) < 0 ? -errno : 0

/* Where a path of the mount is; as a temporary of the caller. */
#define UNDER(path) full((char[4096]){0}, path)
static const char *full(char *room, const char *path) {
    snprintf(room, 4096, "%s%s", backing, path);
    return room;
}

static void *fs_init(struct fuse_conn_info *connection, struct fuse_config *config) {
    (void)connection;
    config->use_ino = 1;
    config->hard_remove = 1;
    config->entry_timeout = config->negative_timeout = config->attr_timeout = cache_seconds;
    return NULL;
}

static int fs_getattr(const char *path, struct stat *st, struct fuse_file_info *file) {
    FAULT("getattr", path);
    if (file) ANSWER(fstat((int)file->fh, st));
    ANSWER(lstat(UNDER(path), st));
}

static int fs_access(const char *path, int mask) {
    FAULT("access", path);
    ANSWER(access(UNDER(path), mask));
}

static int fs_readlink(const char *path, char *out, size_t size) {
    const ssize_t got = readlink(UNDER(path), out, size - 1);
    if (got < 0) return -errno;
    out[got] = 0;
    return 0;
}

static int fs_symlink(const char *target, const char *path) {
    FAULT("symlink", path);
    ANSWER(symlink(target, UNDER(path)));
}

static int fs_readdir(const char *path, void *out, fuse_fill_dir_t fill, off_t offset,
                      struct fuse_file_info *file, enum fuse_readdir_flags flags) {
    (void)offset, (void)file, (void)flags;
    FAULT("readdir", path);
    DIR *dir = opendir(UNDER(path));
    if (!dir) return -errno;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (fill(out, entry->d_name, NULL, 0, 0)) break;
    closedir(dir);
    return 0;
}

static int fs_mkdir(const char *path, mode_t mode) {
    FAULT("mkdir", path);
    ANSWER(mkdir(UNDER(path), mode));
}

static int fs_unlink(const char *path) {
    FAULT("unlink", path);
    ANSWER(unlink(UNDER(path)));
}

static int fs_rmdir(const char *path) {
    FAULT("rmdir", path);
    ANSWER(rmdir(UNDER(path)));
}

static int fs_rename(const char *from, const char *to, unsigned flags) {
    FAULT("rename", to);
    ANSWER(renameat2(AT_FDCWD, UNDER(from), AT_FDCWD, UNDER(to), flags));
}

static int fs_link(const char *from, const char *to) {
    FAULT("link", to);
    ANSWER(link(UNDER(from), UNDER(to)));
}

static int fs_chmod(const char *path, mode_t mode, struct fuse_file_info *file) {
    (void)file;
    ANSWER(chmod(UNDER(path), mode));
}

static int fs_chown(const char *path, uid_t user, gid_t group, struct fuse_file_info *file) {
    (void)file;
    ANSWER(lchown(UNDER(path), user, group));
}

static int fs_truncate(const char *path, off_t size, struct fuse_file_info *file) {
    FAULT("truncate", path);
    if (file) ANSWER(ftruncate((int)file->fh, size));
    ANSWER(truncate(UNDER(path), size));
}

static int fs_utimens(const char *path, const struct timespec times[2],
                      struct fuse_file_info *file) {
    (void)file;
    ANSWER(utimensat(AT_FDCWD, UNDER(path), times, AT_SYMLINK_NOFOLLOW));
}

static int open_backing(const char *path, struct fuse_file_info *file, int flags, mode_t mode) {
    /* The page cache of the backing file is not the point; and short reads are seen as they are. */
    const int fd = open(UNDER(path), (flags & ~O_DIRECT) | O_CLOEXEC, mode);
    if (fd < 0) return -errno;
    file->fh = (uint64_t)fd;
    file->direct_io = 1;
    /* Whoever opens a file sees it as it was when it was last closed, as on NFS. */
    fuse_invalidate_path(fuse_get_context()->fuse, path);
    return 0;
}

static int fs_open(const char *path, struct fuse_file_info *file) {
    FAULT("open", path);
    return open_backing(path, file, file->flags, 0);
}

static int fs_create(const char *path, mode_t mode, struct fuse_file_info *file) {
    FAULT("create", path);
    return open_backing(path, file, file->flags | O_CREAT, mode);
}

static int fs_read(const char *path, char *out, size_t size, off_t offset,
                   struct fuse_file_info *file) {
    const int injected = fault("read", path, offset, &size);
    if (injected) return injected;
    const ssize_t got = pread((int)file->fh, out, size, offset);
    return got < 0 ? -errno : (int)got;
}

static int fs_write(const char *path, const char *data, size_t size, off_t offset,
                    struct fuse_file_info *file) {
    const int injected = fault("write", path, offset, &size);
    if (injected) return injected;
    const ssize_t got = pwrite((int)file->fh, data, size, offset);
    return got < 0 ? -errno : (int)got;
}

static int fs_flush(const char *path, struct fuse_file_info *file) {
    (void)file;
    FAULT("flush", path);
    return 0;
}

static int fs_fsync(const char *path, int only_data, struct fuse_file_info *file) {
    (void)only_data;
    FAULT("fsync", path);
    ANSWER(fsync((int)file->fh));
}

static int fs_release(const char *path, struct fuse_file_info *file) {
    (void)path;
    close((int)file->fh);
    return 0;
}

/* Locks reach from mount to mount, as they do on NFS. */
static int fs_lock(const char *path, struct fuse_file_info *file, int command, struct flock *lock) {
    FAULT("lock", path);
    lock->l_pid = 0;
    command = command == F_GETLK ? F_OFD_GETLK : command == F_SETLK ? F_OFD_SETLK : F_OFD_SETLKW;
    ANSWER(fcntl((int)file->fh, command, lock));
}

static int fs_statfs(const char *path, struct statvfs *st) {
    FAULT("statfs", path);
    ANSWER(statvfs(UNDER(path), st));
}

static const struct fuse_operations operations = {
    .init = fs_init,
    .getattr = fs_getattr,
    .access = fs_access,
    .readlink = fs_readlink,
    .symlink = fs_symlink,
    .readdir = fs_readdir,
    .mkdir = fs_mkdir,
    .unlink = fs_unlink,
    .rmdir = fs_rmdir,
    .rename = fs_rename,
    .link = fs_link,
    .chmod = fs_chmod,
    .chown = fs_chown,
    .truncate = fs_truncate,
    .utimens = fs_utimens,
    .open = fs_open,
    .create = fs_create,
    .read = fs_read,
    .write = fs_write,
    .flush = fs_flush,
    .fsync = fs_fsync,
    .release = fs_release,
    .lock = fs_lock,
    .statfs = fs_statfs,
};

int main(int argc, char **argv) {
    if (argc < 5) {
        fprintf(stderr, "usage: faulty_fs BACKING CONTROL SECONDS MOUNTPOINT [fuse options]\n");
        return 2;
    }
    backing = realpath(argv[1], NULL);
    control = argv[2];
    cache_seconds = atof(argv[3]);
    if (!backing) {
        perror(argv[1]);
        return 2;
    }
    argv[3] = argv[0];
    return fuse_main(argc - 3, argv + 3, &operations, NULL);
}
