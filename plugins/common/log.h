// SPDX-License-Identifier: MIT
#pragma once

#include <cstdarg>
#include <cstdio>

#include "ucm/store_v1.h"

namespace ucm {

// As the documents and the Python API call it.
inline const char *status_name(ucm_status status) {
    static const char *const names[] = {"OK",          "PENDING",     "NOT_FOUND",   "INVALID",
                                        "UNSUPPORTED", "UNAVAILABLE", "NO_SPACE",    "IO",
                                        "CORRUPT",     "CANCELLED",   "INTERNAL",    "BUSY",
                                        "TIMEOUT",     "CLOSED",      "INCOMPATIBLE"};
    const size_t number = size_t(status);
    return number < sizeof names / sizeof *names ? names[number] : "of an unknown status";
}

// Messages of one store, through the host. Not to be used inside done or finished.
class Logger {
  public:
    Logger(const ucm_host *host, const char *plugin) : host_(host), plugin_(plugin) {}

    __attribute__((format(printf, 3, 4))) void write(int32_t level, const char *format, ...) const {
        if (!wants(level)) return;
        char text[1024];
        va_list args;
        va_start(args, format);
        vsnprintf(text, sizeof text, format, args);
        va_end(args);
        host_->log(host_->ctx, level, plugin_, text);
    }

    bool wants(int32_t level) const {
        return host_ && host_->log && (!host_->log_level || level >= host_->log_level(host_->ctx));
    }

  private:
    const ucm_host *host_;
    const char *plugin_;
};

}  // namespace ucm
