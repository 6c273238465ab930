// SPDX-License-Identifier: MIT
#include "rules.h"

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

namespace ucm::fault {
namespace {

constexpr int64_t kHangMs = 600000;  // nothing hangs for ever
constexpr int64_t kMaxMs = 86400000;
constexpr size_t kControlBytes = 65536;  // of the control file; what follows is not read

struct StatusWord {
    const char *word;
    ucm_status status;
    int error;
};

constexpr StatusWord kStatuses[] = {
    {"not_found", UCM_NOT_FOUND, 0},     {"invalid", UCM_INVALID, 0},
    {"unsupported", UCM_UNSUPPORTED, 0}, {"unavailable", UCM_UNAVAILABLE, 0},
    {"no_space", UCM_NO_SPACE, ENOSPC},  {"io", UCM_IO, EIO},
    {"corrupt", UCM_CORRUPT, 0},         {"cancelled", UCM_CANCELLED, 0},
    {"internal", UCM_INTERNAL, 0},       {"timeout", UCM_TIMEOUT, 0},
    {"closed", UCM_CLOSED, 0},           {"incompatible", UCM_INCOMPATIBLE, 0},
};

struct OperationWord {
    const char *word;
    Operation operation;
    const char *faults;  // besides statuses
};

constexpr OperationWord kOperations[] = {
    {"load", Operation::kLoad, "busy delay hang flip short"},
    {"dump", Operation::kDump, "busy delay hang flip"},
    {"lookup", Operation::kLookup, "delay hit miss"},
    {"remove", Operation::kRemove, "delay"},
};

struct KindWord {
    const char *word;
    Rule::Kind kind;
};

constexpr KindWord kKinds[] = {
    {"busy", Rule::Kind::kBusy}, {"delay", Rule::Kind::kDelay}, {"hang", Rule::Kind::kHang},
    {"flip", Rule::Kind::kFlip}, {"short", Rule::Kind::kShort}, {"hit", Rule::Kind::kHit},
    {"miss", Rule::Kind::kMiss},
};

std::string status_words() {
    std::string words;
    for (const StatusWord &each : kStatuses) words += std::string(" ") + each.word;
    return words;
}

std::vector<std::string> words_of(const std::string &text) {
    std::istringstream in(text);
    return {std::istream_iterator<std::string>(in), {}};
}

bool listed(const std::string &list, const std::string &word) {
    for (const std::string &each : words_of(list))
        if (each == word) return true;
    return false;
}

uint64_t scramble(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t next_random(uint64_t &state) {
    state += 0x9e3779b97f4a7c15u;
    return scramble(state);
}

// Reads one rule: "load:io errno=5 every=10".
class Parser {
  public:
    explicit Parser(const std::string &text) : words_(words_of(text)) {
        for (const std::string &word : words_) rule_ += (rule_.empty() ? "" : " ") + word;
    }

    bool empty() const { return words_.empty(); }

    Rule parse() {
        const std::string &head = words_[0];
        const size_t colon = head.find(':');
        if (colon == std::string::npos)
            refuse("it begins with OPERATION:FAULT, such as load:io or dump:delay");
        operation(head.substr(0, colon));
        fault(head.substr(colon + 1));
        for (size_t i = 1; i < words_.size(); i++) parameter(words_[i]);
        if (made_.kind == Rule::Kind::kDelay && made_.effect.delay_ms == 0)
            refuse("a delay needs ms=, such as ms=50");
        if ((made_.at != 0) + (made_.every != 0) + has_p_ > 1)
            refuse("of at=, every= and p= only one can be there");
        return made_;
    }

  private:
    [[noreturn]] void refuse(const std::string &why) const {
        throw Error(UCM_INVALID, "fault_rules: \"" + rule_ + "\": " + why);
    }

    void operation(const std::string &word) {
        for (const OperationWord &each : kOperations)
            if (word == each.word) {
                made_.operation = each.operation;
                faults_ = each.faults;
                return;
            }
        refuse("no operation '" + word + "'; there are: load dump lookup remove");
    }

    void fault(const std::string &word) {
        for (const StatusWord &each : kStatuses)
            if (word == each.word) {
                made_.kind = Rule::Kind::kStatus;
                made_.effect.status = each.status;
                made_.effect.error = each.error;
                parameters_ = "errno at every p";
                return;
            }
        if (!listed(faults_, word))
            refuse("no fault '" + word + "' there; there are: " + faults_ + status_words());
        for (const KindWord &each : kKinds)
            if (word == each.word) made_.kind = each.kind;
        parameters_ = "at every p";
        Plan &effect = made_.effect;
        if (word == "delay") parameters_ = "ms at every p";
        if (word == "hang") {
            parameters_ = "ms at every p";
            effect.hang = true;
            effect.delay_ms = kHangMs;
        }
        if (word == "short") {
            parameters_ = "bytes at every p";
            effect.shorten = true;
            effect.bytes = UINT64_MAX;
        }
        effect.flip = word == "flip";
        effect.hit = word == "hit";
        effect.miss = word == "miss";
    }

    void parameter(const std::string &word) {
        const size_t equals = word.find('=');
        const std::string key = word.substr(0, equals);
        if (equals == std::string::npos || !listed(parameters_, key))
            refuse("no parameter '" + word +
                   "' there; there are, each with =NUMBER: " + parameters_);
        const std::string value = word.substr(equals + 1);
        if (key == "p") {
            has_p_ = true;
            char *end = nullptr;
            made_.p = strtod(value.c_str(), &end);
            if (value.empty() || *end || !(made_.p >= 0 && made_.p <= 1))
                refuse("p=" + value + " is no probability from 0 to 1");
            return;
        }
        if (key == "at") made_.at = uint64_t(number(key, value, 1, INT64_MAX));
        if (key == "every") made_.every = uint64_t(number(key, value, 1, INT64_MAX));
        if (key == "errno") made_.effect.error = int(number(key, value, 0, 4095));
        if (key == "ms") made_.effect.delay_ms = number(key, value, 1, kMaxMs);
        if (key == "bytes") made_.effect.bytes = uint64_t(number(key, value, 0, INT64_MAX));
    }

    int64_t number(const std::string &key, const std::string &value, int64_t least, int64_t most) {
        char *end = nullptr;
        errno = 0;
        const long long made = strtoll(value.c_str(), &end, 10);
        if (value.empty() || *end || errno || made < least || made > most)
            refuse(key + "=" + value + " is no whole number from " + std::to_string(least) +
                   " to " + std::to_string(most));
        return made;
    }

    std::vector<std::string> words_;
    std::string rule_, faults_, parameters_;
    Rule made_{};
    bool has_p_ = false;
};

// Rules end at ; and at the end of a line; # begins a comment.
std::vector<Rule> parse(const std::string &text, uint64_t seed) {
    std::vector<Rule> rules;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream parts(line.substr(0, line.find('#')));
        for (std::string part; std::getline(parts, part, ';');) {
            Parser parser(part);
            if (parser.empty()) continue;
            rules.push_back(parser.parse());
            rules.back().random = scramble(seed + rules.size() * 0x9e3779b97f4a7c15u);
        }
    }
    return rules;
}

}  // namespace

bool Rule::fires() {
    asked++;
    if (at) return asked == at;
    if (every) return asked % every == 0;
    return p >= 1 || double(next_random(random) >> 11) * 0x1p-53 < p;
}

Rules::Rules(std::string text, std::string control, uint64_t seed)
    : given_(std::move(text)), control_(std::move(control)), seed_(seed) {
    text_ = given_;
    rules_ = parse(text_, seed_);
    any_ = !rules_.empty();
}

bool Rules::refresh(std::string *problem) {
    if (control_.empty()) return false;
    std::ifstream file(control_);
    std::string text = given_;
    if (file) {
        text.resize(kControlBytes);
        file.read(text.data(), std::streamsize(text.size()));
        text.resize(size_t(file.gcount()));
    }
    std::lock_guard<std::mutex> hold(mutex_);
    if (text == text_) return false;
    text_ = text;
    try {
        rules_ = parse(text_, seed_);
    } catch (const Error &e) {
        *problem = control_ + ": " + e.what();
        return false;
    }
    any_ = !rules_.empty();
    version_++;
    return true;
}

Plan Rules::next(Operation operation) {
    Plan plan;
    if (!any_) return plan;
    std::lock_guard<std::mutex> hold(mutex_);
    plan.version = version_;
    for (Rule &rule : rules_) {
        if (rule.operation != operation || rule.kind == Rule::Kind::kBusy || !rule.fires())
            continue;
        const Plan &effect = rule.effect;
        if (plan.status == UCM_OK) {
            plan.status = effect.status;
            plan.error = effect.error;
        }
        plan.delay_ms += effect.delay_ms;
        plan.hang |= effect.hang;
        plan.hit |= effect.hit;
        plan.miss |= effect.miss;
        if (effect.flip) {
            plan.flip = true;
            plan.where = next_random(rule.random);
        }
        if (effect.shorten) {
            plan.shorten = true;
            plan.bytes = effect.bytes;
        }
    }
    return plan;
}

bool Rules::busy(Operation operation) {
    bool busy = false;
    if (!any_) return busy;
    std::lock_guard<std::mutex> hold(mutex_);
    for (Rule &rule : rules_)
        if (rule.operation == operation && rule.kind == Rule::Kind::kBusy)
            busy = rule.fires() || busy;
    return busy;
}

}  // namespace ucm::fault
