// SPDX-License-Identifier: MIT
#include "writer_lock.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "block_file.h"
#include "clock.h"
#include "failpoint.h"
#include "files.h"

namespace ucm {

std::string host_prefix() {
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    std::string text = host;
    std::replace(text.begin(), text.end(), '/', '_');
    return text + "-";
}

const std::string &machine_prefix() {
    static const std::string prefix = [] {
        char boot[64] = "";
        const int fd = ::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            const ssize_t got = ::read(fd, boot, sizeof boot - 1);
            if (got < 0) boot[0] = 0;
            ::close(fd);
        }
        std::string text = host_prefix();
        for (const char *c = boot; *c; c++)
            if (*c != '-' && *c != '\n') text += *c;
        return text + "-";
    }();
    return prefix;
}

int lock_file(int fd, uint64_t first, uint64_t count) {
    struct flock lock{};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = off_t(first);
    lock.l_len = off_t(count);  // 0: to the end
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return 0;
    return errno == EACCES ? EAGAIN : errno;
}

void unlock_file(int fd, uint64_t first, uint64_t count) {
    struct flock lock{};
    lock.l_type = F_UNLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = off_t(first);
    lock.l_len = off_t(count);
    fcntl(fd, F_OFD_SETLK, &lock);
}

bool leads_to(const std::string &path, int fd) {
    struct stat by_path{}, by_fd{};
    return ::stat(path.c_str(), &by_path) == 0 && ::fstat(fd, &by_fd) == 0 &&
           by_path.st_ino == by_fd.st_ino && by_path.st_dev == by_fd.st_dev;
}

std::vector<std::string> names_in(const std::string &path) {
    std::vector<std::string> names;
    const Dir dir(opendir(path.c_str()), closedir);
    for_each_name(dir.get(), [&](const std::string &name) { names.push_back(name); });
    return names;
}

namespace {

constexpr int64_t kForeignIdleNs = 24ll * 3600 * 1000000000;

// Lives for ever: a fork may come at any time.
struct Registry {
    std::mutex mutex;  // guards open; held while a fork runs, so that the child finds it whole
    std::vector<std::atomic<int> *> open;

    static Registry &get() {
        static Registry *registry = [] {
            auto *made = new Registry;
            instance = made;
            pthread_atfork([] { instance->mutex.lock(); }, [] { instance->mutex.unlock(); },
                           [] {
                               for (auto *fd : instance->open)
                                   if (const int number = fd->exchange(-1); number >= 0)
                                       ::close(number);
                               instance->mutex.unlock();
                           });
            return made;
        }();
        return *registry;
    }
    static Registry *instance;
};
Registry *Registry::instance = nullptr;

std::string writers_path(const std::string &directory) {
    return directory + "/.ucm/writers";
}

// The lock file goes last: until then nobody else may take the folder for a new one.
void remove_folder(const std::string &path) {
    for (const std::string &name : names_in(path)) {
        const std::string inner = path + "/" + name;
        if (name == "lock" || ::unlink(inner.c_str()) == 0) continue;
        // A folder on its way to its place: files at most are in it.
        for (const std::string &file : names_in(inner)) ::unlink((inner + "/" + file).c_str());
        ::rmdir(inner.c_str());
    }
    ::unlink((path + "/lock").c_str());
    ::rmdir(path.c_str());
}

int64_t changed_ns(const std::string &path) {
    struct stat st{};
    if (::stat(path.c_str(), &st) != 0) return clock_ns(CLOCK_REALTIME);
    return int64_t(st.st_mtim.tv_sec) * 1000000000 + st.st_mtim.tv_nsec;
}

bool long_idle(const std::string &folder) {
    int64_t latest = changed_ns(folder);
    for (const std::string &name : names_in(folder))
        latest = std::max(latest, changed_ns(folder + "/" + name));
    return clock_ns(CLOCK_REALTIME) - latest > kForeignIdleNs;
}

void sweep_writer(const std::string &folder, bool of_this_machine) {
    const std::string path = folder + "/lock";
    const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    const int locked = fd < 0 ? errno : lock_file(fd);
    const bool dead = of_this_machine && locked == 0 && leads_to(path, fd);
    // A lock that is held is believed from wherever it comes.
    const bool swept = dead || (locked != EAGAIN && long_idle(folder));
    if (swept) remove_folder(folder);
    if (fd >= 0) ::close(fd);
    if (swept) ::rmdir(folder.c_str());  // see ~WriterFolder
}

const char *remedy(int error) {
    if (error == EROFS) return "mount it writable; device_id: -1 looks up only, and writes nothing";
    if (status_of_errno(error) == UCM_NO_SPACE)
        return "make room there, with ucm gc, ucm remove, or by removing other files";
    return "give this user write permission there";
}

void refuse(const std::string &path, const std::string &directory, int error) {
    throw Error(status_of_errno(error) == UCM_NO_SPACE ? UCM_NO_SPACE : UCM_UNAVAILABLE,
                "storage_backends: cannot write in " + directory + " (" + errno_text(error) +
                    " for " + path + "); " + remedy(error) + who_owns(path, error),
                error);
}

void make_folder(const std::string &path, const std::string &directory, const Access &access) {
    const int error = access.make_folder(path);
    if (error != 0 && error != EEXIST) refuse(path, directory, error);
}

}  // namespace

ForkClosed::ForkClosed() {
    Registry &registry = Registry::get();
    std::lock_guard<std::mutex> hold(registry.mutex);
    registry.open.push_back(&fd_);
}

ForkClosed::~ForkClosed() {
    close();
    Registry &registry = Registry::get();
    std::lock_guard<std::mutex> hold(registry.mutex);
    registry.open.erase(std::find(registry.open.begin(), registry.open.end(), &fd_));
}

int ForkClosed::close() {
    // Forgotten first: a child must never close a number that may mean another file by now.
    const int fd = fd_.exchange(-1);
    return fd >= 0 && ::close(fd) != 0 ? errno : 0;
}

WriterFolder::WriterFolder(std::string directory, const Access &access)
    : directory_(std::move(directory)), access_(access) {
    make_folder(directory_ + "/.ucm", directory_, access_);
    make_folder(writers_path(directory_), directory_, access_);
    sweep_writers(directory_);
    create();
}

WriterFolder::~WriterFolder() {
    const bool mine = leads_to(path_ + "/lock", lock_.get());
    if (mine) remove_folder(path_);
    lock_.close();
    // NFS keeps what is open under another name in its folder until it is closed.
    if (mine) ::rmdir(path_.c_str());
}

std::string WriterFolder::path() const {
    std::lock_guard<std::mutex> hold(mutex_);
    return path_;
}

std::string WriterFolder::temporary(const std::string &stem) {
    std::lock_guard<std::mutex> hold(mutex_);
    return path_ + "/" + stem + "." + std::to_string(next_++);
}

void WriterFolder::renew() {
    std::lock_guard<std::mutex> hold(mutex_);
    if (leads_to(path_ + "/lock", lock_.get())) return;
    lock_.close();
    make_folder(writers_path(directory_), directory_, access_);
    create();
}

void WriterFolder::create() {
    static std::atomic<uint64_t> number{0};
    const std::string stem =
        writers_path(directory_) + "/" + machine_prefix() + std::to_string(::getpid()) + "-";
    // A name may be taken by a dead process of the same number, or be swept before it is locked.
    for (int tries = 0; tries < 10000; tries++) {
        const std::string path = stem + std::to_string(number++);
        const int error = access_.make_folder(path);
        if (error == EEXIST) continue;
        if (error != 0) refuse(path, directory_, error);
        if (try_lock(path)) {
            path_ = path;
            UCM_FAILPOINT("posix.writer_made");
            return;
        }
    }
    throw Error(UCM_UNAVAILABLE, "cannot lock a file in " + writers_path(directory_) +
                                     "; is something deleting in it?");
}

bool WriterFolder::try_lock(const std::string &path) {
    const std::string file = path + "/lock";
    const int fd = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    const int error = fd < 0 ? errno : access_.apply(fd);
    if (error != 0) {
        if (fd >= 0) ::close(fd);
        if (error == ENOENT) return false;
        throw Error(status_of_errno(error) == UCM_NO_SPACE ? UCM_NO_SPACE : UCM_UNAVAILABLE,
                    "cannot make " + file + ": " + errno_text(error), error);
    }
    lock_.set(fd);
    // Where a file system has no locks, nobody can take ours either.
    if (lock_file(fd) != EAGAIN && leads_to(file, fd)) return true;
    lock_.close();
    return false;
}

void sweep_writers(const std::string &directory) {
    const std::string writers = writers_path(directory), mine = machine_prefix();
    for (const std::string &name : names_in(writers))
        sweep_writer(writers + "/" + name, name.compare(0, mine.size(), mine) == 0);
}

bool writer_lives(const std::string &directory, const std::string &name) {
    const std::string folder = writers_path(directory) + "/" + name, path = folder + "/lock";
    const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return errno != ENOENT && errno != ENOTDIR;
    struct flock asked{};
    asked.l_type = F_WRLCK;
    asked.l_whence = SEEK_SET;
    const bool free = fcntl(fd, F_OFD_GETLK, &asked) == 0 && asked.l_type == F_UNLCK;
    ::close(fd);
    return !free;
}

}  // namespace ucm
