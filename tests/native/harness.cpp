// SPDX-License-Identifier: MIT
#include "harness.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>

#ifndef UCM_TEST_PLUGINS
#define UCM_TEST_PLUGINS "."
#endif

namespace ucm_test {
namespace {

[[noreturn]] void refuse(const std::string &message) {
    throw ucm::Error(UCM_INVALID, message);
}

std::vector<std::string> split(const std::string &text, char separator) {
    std::vector<std::string> parts;
    if (text.empty()) return parts;
    for (size_t from = 0; from <= text.size();) {
        const size_t to = std::min(text.find(separator, from), text.size());
        parts.push_back(text.substr(from, to - from));
        from = to + 1;
    }
    return parts;
}

int64_t to_int(const std::string &name, const std::string &text) {
    char *end = nullptr;
    errno = 0;
    const long long value = std::strtoll(text.c_str(), &end, 10);
    if (errno || end == text.c_str() || *end) refuse("option " + name + ": not a number: " + text);
    return value;
}

double to_float(const std::string &name, const std::string &text) {
    char *end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (end == text.c_str() || *end) refuse("option " + name + ": not a number: " + text);
    return value;
}

int64_t to_size(const std::string &name, const std::string &text) {
    static const std::map<std::string, int64_t> units = {
        {"", 1}, {"B", 1}, {"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}};
    const size_t digits = text.find_first_not_of("0123456789");
    const auto unit = units.find(digits == std::string::npos ? "" : text.substr(digits));
    if (unit == units.end()) refuse("option " + name + ": not a size: " + text);
    return to_int(name, text.substr(0, digits)) * unit->second;
}

bool is_range(const std::string &allowed) {
    return allowed.find("..") != std::string::npos;
}

void check_range(const ucm_option &option, double value) {
    if (!option.allowed) return;
    const std::string allowed = option.allowed;
    const size_t dots = allowed.find("..");
    if (dots == std::string::npos) return;
    const std::string low = allowed.substr(0, dots), high = allowed.substr(dots + 2);
    if ((!low.empty() && value < to_float(option.name, low)) ||
        (!high.empty() && value > to_float(option.name, high)))
        refuse(std::string("option ") + option.name + " is not in " + allowed);
}

void check_choice(const ucm_option &option, const std::string &text) {
    if (!option.allowed || is_range(option.allowed)) return;
    for (const std::string &choice : split(option.allowed, '|'))
        if (choice == text) return;
    refuse(std::string("option ") + option.name + ": " + text + " is not one of " + option.allowed);
}

// Memory must not grow with the number of tasks.
constexpr size_t kKeptLines = 4096;

int32_t log_level(void *) {
    return UCM_LOG_DEBUG;
}

void call_failed(ucm_status status, const ucm_error &error) {
    if (status != UCM_OK) throw ucm::Error(status, error.message, error.os_errno);
}

ucm_error empty_error() {
    ucm_error error{};
    error.struct_size = sizeof error;
    return error;
}

std::vector<uint8_t> joined(const std::vector<BlockId> &ids) {
    std::vector<uint8_t> bytes;
    for (const BlockId &id : ids) bytes.insert(bytes.end(), id.bytes, id.bytes + sizeof id.bytes);
    return bytes;
}

}  // namespace

uint64_t Geometry::capacity() const {
    uint64_t sum = 0;
    for (uint64_t bytes : segments) sum += bytes;
    return sum;
}

Layout::Layout(const Geometry &geometry) : segments(geometry.segments) {
    c.struct_size = sizeof c;
    c.flags = geometry.pages ? UCM_LAYOUT_PAGES : 0;
    c.shards_per_block = geometry.shards;
    c.n_segments = uint32_t(segments.size());
    c.segment_bytes = segments.data();
    c.capacity = geometry.capacity();
    c.raw_capacity = geometry.raw_capacity ? geometry.raw_capacity : c.capacity;
    std::memcpy(c.encoding, geometry.encoding.data(), geometry.encoding.size());
    for (size_t k = 0; k < segments.size(); k++)
        planes.push_back({segments[k], geometry.dtype, k % 2 ? UCM_PLANE_V : UCM_PLANE_K});
    c.n_planes = uint32_t(planes.size());
    c.plane_stride = sizeof(ucm_plane);
    c.planes = planes.data();
    c.memory = geometry.memory;
    c.device = geometry.device;
}

bool all_are(const std::vector<ucm_result> &results, ucm_status status) {
    return std::all_of(results.begin(), results.end(),
                       [&](const ucm_result &result) { return result.status == status; });
}

bool all_ok(const std::vector<ucm_result> &results) {
    return all_are(results, UCM_OK);
}

TempDir::TempDir() {
    const char *root = std::getenv("TMPDIR");
    std::string name = std::string(root && *root ? root : "/tmp") + "/ucm-test-XXXXXX";
    if (!mkdtemp(name.data()))
        throw ucm::Error(UCM_IO, "cannot make a directory " + name + ": " + std::strerror(errno));
    path_ = name;
}

TempDir::~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

std::vector<std::string> TempDir::files() const {
    std::vector<std::string> found;
    for (auto &entry : std::filesystem::recursive_directory_iterator(path_))
        if (entry.is_regular_file()) found.push_back(entry.path());
    std::sort(found.begin(), found.end());
    return found;
}

Host::Host() {
    c_.struct_size = sizeof c_;
    c_.abi_minor = UCM_ABI_MINOR;
    c_.version = "native tests";
    c_.ctx = this;
    c_.log_level = log_level;
    c_.log = [](void *ctx, int32_t level, const char *plugin, const char *message) {
        auto *self = static_cast<Host *>(ctx);
        std::lock_guard<std::mutex> hold(self->mutex_);
        if (self->lines_.size() >= kKeptLines) self->lines_.pop_front();
        self->lines_.push_back({level, plugin, message});
    };
}

std::vector<LogLine> Host::lines() const {
    std::lock_guard<std::mutex> hold(mutex_);
    return {lines_.begin(), lines_.end()};
}

bool Host::logged(const std::string &part) const {
    std::lock_guard<std::mutex> hold(mutex_);
    return std::any_of(lines_.begin(), lines_.end(), [&](const LogLine &line) {
        return line.message.find(part) != std::string::npos;
    });
}

std::string plugin_path(const std::string &name) {
    const char *folders = std::getenv("UCM_TEST_PLUGINS");
    std::string path = name;
    for (char &letter : path) letter = char(std::tolower(static_cast<unsigned char>(letter)));
    for (const std::string &folder : split(folders ? folders : UCM_TEST_PLUGINS, ':'))
        if (access((folder + "/" + path + ".so").c_str(), F_OK) == 0)
            return folder + "/" + path + ".so";
    return path + ".so";
}

bool has_plugin(const std::string &name) {
    return access(plugin_path(name).c_str(), F_OK) == 0;
}

const ucm_plugin *plugin(const std::string &name) {
    const std::string path = plugin_path(name);
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) refuse("cannot open " + path + ": " + dlerror());
    auto *entry = reinterpret_cast<const ucm_plugin *(*)()>(dlsym(library, UCM_PLUGIN_SYMBOL));
    if (!entry) refuse(path + " has no symbol " UCM_PLUGIN_SYMBOL);
    const ucm_plugin *found = entry();
    if (!UCM_HAS(ucm_plugin, found, open)) refuse(path + ": the descriptor is too small");
    if (found->abi_major != UCM_ABI_MAJOR || found->abi_draft != UCM_ABI_DRAFT)
        refuse(path + ": another ABI");
    if (found->flags & ~uint64_t(UCM_PLUGIN_NEEDS_LOWER)) refuse(path + ": unknown plugin flags");
    if (name != found->name) refuse(path + " is named " + found->name);
    return found;
}

ParsedOptions::ParsedOptions(const ucm_plugin *plugin, const Options &options) {
    values_.resize(plugin->n_options);
    for (size_t i = 0; i < plugin->n_options; i++) {
        const ucm_option &option = *UCM_AT(ucm_option, plugin->options, plugin->option_stride, i);
        auto given = options.find(std::string(plugin->name) + "." + option.name);
        if (given == options.end()) given = options.find(option.name);
        values_[i].type = option.type;
        values_[i].given = given != options.end();
        values_[i].s = "";
        if (!values_[i].given && !option.initial)
            refuse(std::string("option ") + option.name + " is required by " + plugin->name);
        parse(option, values_[i].given ? given->second : option.initial, values_[i]);
    }
}

void ParsedOptions::parse(const ucm_option &option, const std::string &text, ucm_value &value) {
    switch (option.type) {
        case UCM_TYPE_BOOL:
            if (text != "true" && text != "false" && text != "1" && text != "0")
                refuse(std::string("option ") + option.name + ": not true or false: " + text);
            value.i = text == "true" || text == "1";
            break;
        case UCM_TYPE_INT:
        case UCM_TYPE_SIZE:
            value.i = option.type == UCM_TYPE_INT ? to_int(option.name, text)
                                                  : to_size(option.name, text);
            check_range(option, double(value.i));
            check_choice(option, text);
            break;
        case UCM_TYPE_FLOAT:
            value.f = to_float(option.name, text);
            check_range(option, value.f);
            break;
        case UCM_TYPE_STRING:
        case UCM_TYPE_SECRET:
            check_choice(option, text);
            value.s = strings_.emplace_back(text).c_str();
            break;
        case UCM_TYPE_STRINGS: {
            auto &list = string_lists_.emplace_back();
            for (const std::string &part : split(text, ':'))
                list.push_back(strings_.emplace_back(part).c_str());
            value.strings = list.data();
            value.count = list.size();
            break;
        }
        case UCM_TYPE_INTS: {
            auto &list = int_lists_.emplace_back();
            for (const std::string &part : split(text, ','))
                list.push_back(to_int(option.name, part));
            value.ints = list.data();
            value.count = list.size();
            break;
        }
        default:
            refuse(std::string("option ") + option.name + " has an unknown type");
    }
}

Stack::Stack(std::vector<std::string> layers, Options options, Geometry geometry,
             std::shared_ptr<Memory> memory, std::string unique_id)
    : names_(std::move(layers)),
      geometry_(std::move(geometry)),
      memory_(std::move(memory)),
      host_(std::make_shared<Host>()) {
    closed_.report.struct_size = sizeof closed_.report;
    stores_.resize(names_.size());
    try {
        open(options, unique_id);
    } catch (...) {
        close();
        throw;
    }
}

Stack::~Stack() {
    // A store that is still at work needs its host: leave it.
    static auto &kept = *new std::vector<std::shared_ptr<Host>>();
    if (close().status == UCM_PENDING) kept.push_back(host_);
}

void Stack::open(const Options &options, const std::string &unique_id) {
    std::set<std::string> known;
    for (const std::string &name : names_) {
        plugins_.push_back(name == "Memory" ? nullptr : plugin(name));
        options_.push_back(
            plugins_.back() ? std::make_unique<ParsedOptions>(plugins_.back(), options) : nullptr);
        for (size_t i = 0; plugins_.back() && i < plugins_.back()->n_options; i++) {
            const std::string key =
                UCM_AT(ucm_option, plugins_.back()->options, plugins_.back()->option_stride, i)
                    ->name;
            known.insert(key);
            known.insert(name + "." + key);
        }
    }
    for (auto &entry : options)
        if (!known.count(entry.first)) refuse("no layer takes the option " + entry.first);
    if (plugins_.back() && (plugins_.back()->flags & UCM_PLUGIN_NEEDS_LOWER))
        refuse(names_.back() + " needs a layer below");

    layouts_.push_back(std::make_unique<Layout>(geometry_));
    for (size_t depth = 0; depth + 1 < names_.size(); depth++) {
        if (!plugins_[depth] || !(plugins_[depth]->flags & UCM_PLUGIN_NEEDS_LOWER))
            refuse(names_[depth] + " stands at the bottom");
        const Layout &upper = *layouts_[depth];
        auto lower = std::make_unique<Layout>(geometry_);
        lower->c = upper.c;
        lower->c.flags = 0;
        lower->c.n_planes = 0;
        lower->c.planes = nullptr;
        lower->c.plane_stride = 0;
        lower->c.memory = UCM_MEMORY_HOST;
        lower->c.device = -1;
        lower->segments.assign(UCM_MAX_SEGMENTS, 0);
        lower->planes.assign(UCM_MAX_SEGMENTS, ucm_plane{});
        if (plugins_[depth]->lower_layout && (!geometry_.lookup_only || geometry_.lookup_layout)) {
            ucm_layout_args args{};
            args.struct_size = sizeof args;
            args.layout = &upper.c;
            args.n_values = options_[depth]->values().size();
            args.value_stride = sizeof(ucm_value);
            args.values = options_[depth]->values().data();
            args.segments_room = lower->segments.size();
            args.segment_bytes = lower->segments.data();
            args.planes_room = lower->planes.size() * sizeof(ucm_plane);
            args.planes = lower->planes.data();
            ucm_error error = empty_error();
            call_failed(plugins_[depth]->lower_layout(&args, &lower->c, &error), error);
            check_lower(names_[depth], upper.c, lower->c);
        } else {
            lower->c = upper.c;
        }
        layouts_.push_back(std::move(lower));
    }
    for (size_t depth = names_.size(); depth-- > 0;) open_layer(depth, unique_id);
    capabilities_ = top()->capabilities;
}

void Stack::open_layer(size_t depth, const std::string &unique_id) {
    ucm_open_args args{};
    args.struct_size = sizeof args;
    args.flags = geometry_.lookup_only ? UCM_OPEN_LOOKUP_ONLY : 0;
    args.host = host_->c();
    const bool layout = !geometry_.lookup_only || geometry_.lookup_layout;
    args.layout = layout ? &layouts_[depth]->c : nullptr;
    if (depth + 1 < names_.size()) {
        args.lower = stores_[depth + 1];
        args.lower_layout = layout ? &layouts_[depth + 1]->c : nullptr;
    }
    args.unique_id = unique_id.c_str();
    args.layer = names_[depth].c_str();
    if (!plugins_[depth]) {
        auto handle = std::make_unique<ucm::detail::Handle>();
        handle->forks = ucm::forks().load();
        handle->store = std::make_unique<MemoryStore>(args, memory_);
        handle->base.struct_size = sizeof(ucm_store);
        handle->base.ops = ucm::detail::ops();
        handle->base.capabilities = handle->store->capabilities();
        if (!geometry_.lookup_only) {
            handle->base.capacity = args.layout->capacity;
            handle->base.raw_capacity = args.layout->raw_capacity;
            handle->base.shards_per_block = args.layout->shards_per_block;
        }
        stores_[depth] = &handle.release()->base;
        return;
    }
    args.n_values = options_[depth]->values().size();
    args.value_stride = sizeof(ucm_value);
    args.values = options_[depth]->values().data();
    ucm_error error = empty_error();
    call_failed(plugins_[depth]->open(&args, &stores_[depth], &error), error);
    const ucm_store *store = stores_[depth];
    if (!UCM_HAS(ucm_store, store, shards_per_block) ||
        !UCM_HAS(ucm_store_ops, store->ops, close) ||
        store->capacity != (geometry_.lookup_only ? 0 : args.layout->capacity) ||
        store->shards_per_block != (geometry_.lookup_only ? 0 : args.layout->shards_per_block))
        refuse(names_[depth] + ": the opened store does not describe itself rightly");
}

void Stack::check_lower(const std::string &name, const ucm_layout &upper,
                        const ucm_layout &lower) const {
    uint64_t sum = 0, planes = 0;
    if (lower.n_segments < 1 || lower.n_segments > UCM_MAX_SEGMENTS)
        refuse(name + ": lower n_segments");
    for (uint32_t k = 0; k < lower.n_segments; k++) {
        if (!lower.segment_bytes[k]) refuse(name + ": an empty lower segment");
        sum += lower.segment_bytes[k];
    }
    for (uint32_t k = 0; k < lower.n_planes; k++)
        planes += UCM_AT(ucm_plane, lower.planes, lower.plane_stride, k)->bytes;
    if (lower.struct_size != sizeof lower) refuse(name + ": wrote struct_size");
    if (sum != lower.capacity) refuse(name + ": lower capacity is not the sum of its segments");
    if (planes > lower.capacity) refuse(name + ": lower planes are longer than a shard");
    if (lower.flags & ~uint64_t(UCM_LAYOUT_PAGES)) refuse(name + ": unknown lower flags");
    if ((lower.flags & UCM_LAYOUT_PAGES) && lower.n_segments != 1)
        refuse(name + ": pages with several segments");
    if (lower.shards_per_block != upper.shards_per_block) refuse(name + ": lower shards_per_block");
    if (lower.raw_capacity != upper.raw_capacity) refuse(name + ": lower raw_capacity");
    if (std::strncmp(lower.encoding, upper.encoding, std::strlen(upper.encoding)) != 0)
        refuse(name + ": the lower encoding does not begin with the upper one");
    if (lower.capacity != upper.capacity && !std::strcmp(lower.encoding, upper.encoding))
        refuse(name + ": another capacity, but the same encoding");
}

Closed Stack::close(int64_t timeout_ms) {
    for (ucm_store *&store : stores_) {
        if (!store) continue;
        ucm_wait_args args{sizeof args, 0, timeout_ms};
        ucm_report report{};
        report.struct_size = sizeof report;
        ucm_error error = empty_error();
        const ucm_status status = ucm_close(store, &args, &report, &error);
        closed_.report.stored += report.stored;
        closed_.report.lost += report.lost;
        closed_.report.unfinished += report.unfinished;
        closed_.report.pending = report.pending;
        closed_.status = status;
        closed_.error = status == UCM_OK ? "" : error.message;
        const bool stays =
            status == UCM_PENDING || status == UCM_INVALID || status == UCM_UNSUPPORTED;
        if (stays) return closed_;
        store = nullptr;
    }
    return closed_;
}

std::vector<ucm_result> Stack::run(const std::vector<BlockId> &ids, bool dump, uint64_t flags) {
    Move move(*this, shards_of(ids, geometry_.shards));
    move.transfer.flags = flags;
    const ucm_status status = dump ? move.dump_patiently() : move.load_patiently();
    call_failed(status, move.error);
    move.wait(-1);
    return move.results();
}

std::vector<ucm_result> Stack::dump(const std::vector<BlockId> &ids, uint64_t flags) {
    return run(ids, true, flags);
}

std::vector<ucm_result> Stack::load(const std::vector<BlockId> &ids) {
    return run(ids, false, 0);
}

bool Stack::loads_back(const std::vector<BlockId> &ids) {
    Move move(*this, shards_of(ids, geometry_.shards));
    call_failed(move.load_patiently(), move.error);
    if (move.wait(-1) != UCM_OK || move.overrun()) return false;
    for (size_t i = 0; i < move.n(); i++)
        if (move.result(i).length != geometry_.capacity() || !move.same(i)) return false;
    return true;
}

std::vector<uint8_t> Stack::tiers(const std::vector<BlockId> &ids) {
    const auto bytes = joined(ids);
    std::vector<uint8_t> tiers(ids.size(), 0xee);
    ucm_lookup_args args{};
    args.struct_size = sizeof args;
    args.n = ids.size();
    args.block_ids = bytes.data();
    args.tiers = tiers.data();
    ucm_error error = empty_error();
    call_failed(ucm_lookup(top(), &args, &error), error);
    return tiers;
}

std::vector<bool> Stack::lookup(const std::vector<BlockId> &ids) {
    const auto found = tiers(ids);
    return std::vector<bool>(found.begin(), found.end());
}

size_t Stack::hits(const std::vector<BlockId> &ids, int32_t mode) {
    const auto bytes = joined(ids);
    size_t hits = SIZE_MAX;
    ucm_lookup_args args{};
    args.struct_size = sizeof args;
    args.mode = mode;
    args.n = ids.size();
    args.block_ids = bytes.data();
    args.hits = &hits;
    ucm_error error = empty_error();
    call_failed(ucm_lookup(top(), &args, &error), error);
    return hits;
}

namespace {
template <typename F>
ucm_status call_with_ids(ucm_store *store, const std::vector<BlockId> &ids, F function) {
    const auto bytes = joined(ids);
    ucm_ids_args args{};
    args.struct_size = sizeof args;
    args.n = ids.size();
    args.block_ids = bytes.data();
    return function(store, &args, nullptr);
}
}  // namespace

ucm_status Stack::remove(const std::vector<BlockId> &ids) {
    return call_with_ids(top(), ids, ucm_remove);
}
ucm_status Stack::touch(const std::vector<BlockId> &ids) {
    return call_with_ids(top(), ids, ucm_touch);
}
ucm_status Stack::prefetch(const std::vector<BlockId> &ids) {
    return call_with_ids(top(), ids, ucm_prefetch);
}

ucm_status Stack::drain(ucm_report *report, int64_t timeout_ms) {
    ucm_wait_args args{sizeof args, 0, timeout_ms};
    if (report) {
        *report = ucm_report{};
        report->struct_size = sizeof *report;
    }
    return ucm_drain(top(), &args, report, nullptr);
}

std::map<std::string, uint64_t> Stack::metrics(size_t depth) const {
    std::map<std::string, uint64_t> named;
    const ucm_plugin *plugin = plugins_[depth];
    if (!plugin) return named;
    auto metric = [&](size_t i) {
        return UCM_AT(ucm_metric, plugin->metrics, plugin->metric_stride, i);
    };
    size_t entries = 0;
    for (size_t i = 0; i < plugin->n_metrics; i++)
        entries += metric(i)->kind == UCM_METRIC_HISTOGRAM ? UCM_HISTOGRAM_VALUES : 1;
    std::vector<uint64_t> values(entries);
    ucm_metrics_args args{sizeof args, 0, entries, values.data()};
    ucm_error error = empty_error();
    call_failed(ucm_metrics(stores_[depth], &args, &error), error);
    for (size_t i = 0, at = 0; i < plugin->n_metrics; i++) {
        const bool histogram = metric(i)->kind == UCM_METRIC_HISTOGRAM;
        named[metric(i)->name] = values[at];
        if (histogram) named[std::string(metric(i)->name) + ".sum"] = values[at + 1];
        at += histogram ? UCM_HISTOGRAM_VALUES : 1;
    }
    return named;
}

std::vector<Shard> shards_of(const std::vector<BlockId> &ids, uint32_t shards_per_block) {
    std::vector<Shard> shards;
    for (const BlockId &id : ids)
        for (uint32_t index = 0; index < shards_per_block; index++) shards.push_back({id, index});
    return shards;
}

Move::Move(Stack &stack, std::vector<Shard> shards, std::vector<uint64_t> lengths,
           std::vector<uint64_t> raw_lengths)
    : stack_(stack),
      shards_(std::move(shards)),
      lengths_(std::move(lengths)),
      raw_lengths_(std::move(raw_lengths)) {
    const Geometry &geometry = stack.geometry();
    constexpr uint64_t kGap = 64;  // between segments, to find writes past their end
    for (uint64_t bytes : geometry.segments) {
        if (geometry.pages || geometry.misalign)
            stride_ = ucm::round_up(stride_) + geometry.misalign;
        offsets_.push_back(stride_);
        stride_ += (geometry.pages ? ucm::round_up(bytes) : bytes) + kGap;
    }
    if (geometry.pages || geometry.misalign) stride_ = ucm::round_up(stride_);
    memory_ = std::make_unique<ucm::Mapping>(stride_ * n());
    for (size_t i = 0; i < n(); i++) {
        ids_.insert(ids_.end(), shards_[i].id.bytes, shards_[i].id.bytes + UCM_BLOCK_ID_BYTES);
        indexes_.push_back(shards_[i].index);
        for (size_t k = 0; k < offsets_.size(); k++) addresses_.push_back(segment(i, k));
    }
    transfer.struct_size = sizeof transfer;
    transfer.n = n();
    transfer.block_ids = ids_.data();
    transfer.shard_index = indexes_.data();
    transfer.addresses = addresses_.data();
    error.struct_size = sizeof error;
    waiter_ = ucm_waiter_new(n(), nullptr, nullptr);
}

Move::~Move() {
    if (running_) ucm_waiter_wait(waiter_, -1);
    ucm_waiter_forget(waiter_);
}

uint8_t *Move::segment(size_t i, size_t k) const {
    return memory_->base() + i * stride_ + offsets_[k];
}

void Move::fill(uint8_t byte) {
    std::memset(memory_->base(), byte, stride_ * n());
}

ucm_status Move::dump() {
    const Geometry &geometry = stack_.geometry();
    fill(0xa5);
    for (size_t i = 0; i < n(); i++) {
        const uint64_t length = lengths_.empty() ? geometry.capacity() : lengths_[i];
        const auto bytes = contents(shards_[i].id, shards_[i].index, length, geometry.dtype);
        for (size_t k = 0, at = 0; k < offsets_.size() && at < length; k++) {
            const size_t part = std::min<size_t>(geometry.segments[k], length - at);
            std::memcpy(segment(i, k), bytes.data() + at, part);
            at += part;
        }
    }
    transfer.lengths = lengths_.empty() ? nullptr : lengths_.data();
    transfer.raw_lengths = raw_lengths_.empty() ? nullptr : raw_lengths_.data();
    const ucm_status status =
        ucm_waiter_submit(waiter_, ucm_dump, stack_.top(), &transfer, &task, &error);
    running_ = status == UCM_OK;
    return status;
}

ucm_status Move::load() {
    fill(0xa5);
    const ucm_status status =
        ucm_waiter_submit(waiter_, ucm_load, stack_.top(), &transfer, &task, &error);
    running_ = status == UCM_OK;
    return status;
}

ucm_status Move::dump_patiently() {
    ucm_status status;
    while ((status = dump()) == UCM_BUSY) usleep(500);
    return status;
}

ucm_status Move::load_patiently() {
    ucm_status status;
    while ((status = load()) == UCM_BUSY) usleep(500);
    return status;
}

ucm_status Move::wait(int64_t timeout_ms) {
    return ucm_waiter_wait(waiter_, timeout_ms);
}

bool Move::finished() {
    return ucm_waiter_check(waiter_) != UCM_PENDING;
}

std::vector<ucm_result> Move::results() const {
    return std::vector<ucm_result>(waiter_->results, waiter_->results + n());
}

std::vector<uint8_t> Move::bytes(size_t i) const {
    std::vector<uint8_t> bytes;
    for (size_t k = 0; k < offsets_.size(); k++)
        bytes.insert(bytes.end(), segment(i, k), segment(i, k) + stack_.geometry().segments[k]);
    return bytes;
}

}  // namespace ucm_test
