// SPDX-License-Identifier: MIT
//
// The rules of the line between host and plugin: descriptors, sizes, strides and unknown flags.
#include <catch2/catch.hpp>
#include <cctype>
#include <cstring>
#include <set>

#include "pipelines.h"

using namespace ucm_test;

namespace {

std::vector<std::string> built_plugins() {
    std::vector<std::string> names;
    for (const char *name : {"Cache", "Compress", "Empty", "Fake", "Fault", "Heap", "Posix"})
        if (has_plugin(name)) names.push_back(name);
    return names;
}

bool is_key(const std::string &text) {
    for (char c : text)
        if (!std::islower(static_cast<unsigned char>(c)) && !std::isdigit(c) && c != '_')
            return false;
    return !text.empty();
}

ucm_error new_error() {
    ucm_error error{};
    error.struct_size = sizeof error;
    return error;
}

// A struct of a later version: ours, then members that we do not know.
template <typename T>
struct Later {
    T known{};
    unsigned char unknown[64];
    Later() {
        std::memset(unknown, 0xff, sizeof unknown);
        known.struct_size = sizeof *this;
    }
    bool untouched() const {
        for (unsigned char byte : unknown)
            if (byte != 0xff) return false;
        return known.struct_size == sizeof *this;
    }
};

}  // namespace

TEST_CASE("every descriptor is whole", "[abi]") {
    const std::string name = GENERATE(from_range(built_plugins()));
    CAPTURE(name);
    const ucm_plugin *p = plugin(name);
    REQUIRE(p == plugin(name));
    REQUIRE(p->struct_size >= sizeof(ucm_plugin));
    REQUIRE(p->name == name);
    REQUIRE(std::isalpha(p->name[0]));
    for (const char *c = p->name; *c; c++) REQUIRE(std::isalnum(*c));
    REQUIRE(std::strlen(p->version) > 0);
    REQUIRE(std::strlen(p->summary) > 0);
    REQUIRE(std::strchr(p->summary, '\n') == nullptr);
    REQUIRE(p->open != nullptr);
}

TEST_CASE("options describe themselves, and their defaults are allowed", "[abi]") {
    const std::string name = GENERATE(from_range(built_plugins()));
    const ucm_plugin *p = plugin(name);
    REQUIRE(p->option_stride >= sizeof(ucm_option));
    std::set<std::string> seen;
    Options required;
    for (size_t i = 0; i < p->n_options; i++) {
        const ucm_option &option = *UCM_AT(ucm_option, p->options, p->option_stride, i);
        CAPTURE(name, option.name);
        REQUIRE(is_key(option.name));
        REQUIRE(seen.insert(option.name).second);
        REQUIRE(option.type >= UCM_TYPE_BOOL);
        REQUIRE(option.type <= UCM_TYPE_SECRET);
        REQUIRE(option.reserved == 0);
        REQUIRE(option.help != nullptr);
        REQUIRE(std::strlen(option.help) > 0);
        if (!option.initial) required[option.name] = "x";
    }
    REQUIRE_NOTHROW(ParsedOptions(p, required));
}

TEST_CASE("metrics describe themselves", "[abi]") {
    const std::string name = GENERATE(from_range(built_plugins()));
    const ucm_plugin *p = plugin(name);
    REQUIRE(p->metric_stride >= sizeof(ucm_metric));
    std::set<std::string> seen;
    for (size_t i = 0; i < p->n_metrics; i++) {
        const ucm_metric &metric = *UCM_AT(ucm_metric, p->metrics, p->metric_stride, i);
        CAPTURE(name, metric.name);
        REQUIRE(is_key(metric.name));
        REQUIRE(seen.insert(metric.name).second);
        REQUIRE(metric.kind >= UCM_METRIC_COUNTER);
        REQUIRE(metric.kind <= UCM_METRIC_HISTOGRAM);
        REQUIRE((metric.scope == UCM_SCOPE_STORE || metric.scope == UCM_SCOPE_SHARED));
        REQUIRE(metric.unit != nullptr);
        REQUIRE(std::strlen(metric.help) > 0);
    }
}

TEST_CASE("the wrappers refuse arguments that are too small", "[abi]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers);
    ucm_store *top = pipeline->top();
    ucm_error error = new_error();
    ucm_lookup_args lookup{};
    ucm_ids_args ids{};
    ucm_wait_args wait{};
    ucm_metrics_args metrics{};
    ucm_transfer transfer{};
    lookup.struct_size = sizeof lookup - 8;
    ids.struct_size = sizeof ids - 8;
    wait.struct_size = sizeof wait - 8;
    metrics.struct_size = sizeof metrics - 8;
    transfer.struct_size = sizeof transfer - 8;
    REQUIRE(ucm_lookup(top, &lookup, &error) == UCM_INVALID);
    REQUIRE(std::string(error.message).find("ucm_lookup_args") != std::string::npos);
    REQUIRE(ucm_remove(top, &ids, nullptr) == UCM_INVALID);
    REQUIRE(ucm_prefetch(top, &ids, nullptr) == UCM_INVALID);
    REQUIRE(ucm_drain(top, &wait, nullptr, nullptr) == UCM_INVALID);
    REQUIRE(ucm_metrics(top, &metrics, nullptr) == UCM_INVALID);
    REQUIRE(ucm_load(top, &transfer, nullptr, nullptr) == UCM_INVALID);
    REQUIRE(ucm_dump(top, &transfer, nullptr, nullptr) == UCM_INVALID);
}

TEST_CASE("structs of a later version are read and written as far as they are known", "[abi]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{2, {100}});
    const BlockId id = make_id(0);
    Later<ucm_lookup_args> lookup;
    uint8_t tier = 9;
    lookup.known.n = 1;
    lookup.known.block_ids = id.bytes;
    lookup.known.tiers = &tier;
    REQUIRE(ucm_lookup(pipeline->top(), &lookup.known, nullptr) == UCM_OK);
    REQUIRE(tier == 0);
    REQUIRE(lookup.untouched());

    Later<ucm_transfer> transfer;
    Move move(*pipeline, shards_of({id}, 2));
    const size_t size = transfer.known.struct_size;
    transfer.known = move.transfer;
    transfer.known.struct_size = size;
    ucm_waiter *waiter = ucm_waiter_new(2, nullptr, nullptr);
    REQUIRE(ucm_waiter_submit(waiter, ucm_dump, pipeline->top(), &transfer.known, nullptr,
                              nullptr) == UCM_OK);
    REQUIRE(ucm_waiter_wait(waiter, -1) == UCM_OK);
    ucm_waiter_forget(waiter);
    REQUIRE(transfer.untouched());

    Later<ucm_wait_args> wait;
    Later<ucm_report> report;
    wait.known.timeout_ms = -1;
    REQUIRE(ucm_drain(pipeline->top(), &wait.known, &report.known, nullptr) == UCM_OK);
    REQUIRE(report.untouched());
    REQUIRE(ucm_drain(pipeline->top(), &wait.known, nullptr, nullptr) == UCM_OK);

    Later<ucm_error> error;
    Move wrong(*pipeline, {{id, 0}});
    wrong.transfer.flags = uint64_t(1) << 50;
    wrong.transfer.done = [](void *, size_t, const ucm_result *) {};
    wrong.transfer.finished = [](void *) {};
    REQUIRE(ucm_dump(pipeline->top(), &wrong.transfer, nullptr, &error.known) == UCM_UNSUPPORTED);
    REQUIRE(error.known.code == UCM_UNSUPPORTED);
    REQUIRE(std::strlen(error.known.message) > 0);
    REQUIRE(error.untouched());
}

TEST_CASE("every call refuses a flag that it does not know, and close works after that", "[abi]") {
    constexpr uint64_t kUnknown = uint64_t(1) << 63;
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers);
    ucm_store *top = pipeline->top();
    const BlockId id = make_id(1);
    ucm_lookup_args lookup{};
    lookup.struct_size = sizeof lookup;
    lookup.flags = kUnknown;
    lookup.n = 1;
    lookup.block_ids = id.bytes;
    REQUIRE(ucm_lookup(top, &lookup, nullptr) == UCM_UNSUPPORTED);
    ucm_ids_args ids{};
    ids.struct_size = sizeof ids;
    ids.flags = kUnknown;
    ids.n = 1;
    ids.block_ids = id.bytes;
    if (UCM_OPS_HAVE(top, prefetch)) REQUIRE(ucm_prefetch(top, &ids, nullptr) == UCM_UNSUPPORTED);
    if (UCM_OPS_HAVE(top, touch)) REQUIRE(ucm_touch(top, &ids, nullptr) == UCM_UNSUPPORTED);
    REQUIRE(ucm_remove(top, &ids, nullptr) == UCM_UNSUPPORTED);
    Move move(*pipeline, {{id, 0}});
    move.transfer.flags = kUnknown;
    REQUIRE(move.dump() == UCM_UNSUPPORTED);
    Move back(*pipeline, {{id, 0}});
    back.transfer.flags = kUnknown;
    REQUIRE(back.load() == UCM_UNSUPPORTED);
    uint64_t value = 0;
    const ucm_metrics_args metrics{sizeof metrics, kUnknown, 1, &value};
    if (UCM_OPS_HAVE(top, metrics)) REQUIRE(ucm_metrics(top, &metrics, nullptr) == UCM_UNSUPPORTED);
    ucm_memory_args memory{};
    memory.struct_size = sizeof memory;
    memory.flags = kUnknown;
    if (UCM_OPS_HAVE(top, register_memory))
        REQUIRE(ucm_register_memory(top, &memory, nullptr) == UCM_UNSUPPORTED);
    const ucm_wait_args wait{sizeof wait, kUnknown, -1};
    REQUIRE(ucm_drain(top, &wait, nullptr, nullptr) == UCM_UNSUPPORTED);
    REQUIRE(ucm_close(top, &wait, nullptr, nullptr) == UCM_UNSUPPORTED);
    pipeline->dump({id});
    REQUIRE(pipeline->close().status == UCM_OK);
}

TEST_CASE("a mode of lookup that is not known is refused all the way down", "[abi]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers);
    const BlockId id = make_id(1);
    pipeline->dump({id});
    for (const int32_t mode : {-1, 3, 1000}) {
        size_t hits = 99;
        ucm_lookup_args args{};
        args.struct_size = sizeof args;
        args.mode = mode;
        args.n = 1;
        args.block_ids = id.bytes;
        args.hits = &hits;
        REQUIRE(ucm_lookup(pipeline->top(), &args, nullptr) == UCM_UNSUPPORTED);
        REQUIRE(hits == 99);
    }
}

TEST_CASE("metrics write no more than there is room for", "[abi]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers);
    uint64_t values[4] = {7, 7, 7, 7};
    ucm_metrics_args args{sizeof args, 0, 2, values};
    REQUIRE(ucm_metrics(pipeline->top(), &args, nullptr) == UCM_OK);
    REQUIRE(values[2] == 7);
    REQUIRE(values[3] == 7);
}

namespace {

// Opens the bottom layer by hand, after `change` had its way with the arguments.
template <typename F>
ucm_status open_bottom(const std::string &name, F change) {
    TempDir directory;
    Options options;
    if (name == "Posix") options["storage_backends"] = directory.path();
    const ucm_plugin *p = plugin(name);
    const ParsedOptions parsed(p, options);
    // A stride that is not ours: the next version's values are longer.
    struct LaterValue {
        ucm_value value;
        uint64_t more[3];
    };
    std::vector<LaterValue> values(parsed.values().size());
    for (size_t i = 0; i < values.size(); i++) values[i] = {parsed.values()[i], {~0u, ~0u, ~0u}};
    Layout layout(Geometry{2, {100}});
    Host host;
    Later<ucm_open_args> args;
    args.known.host = host.c();
    args.known.layout = &layout.c;
    args.known.n_values = values.size();
    args.known.value_stride = sizeof(LaterValue);
    args.known.values = values.empty() ? nullptr : &values[0].value;
    args.known.unique_id = "";
    change(args.known, layout.c);
    ucm_store *store = nullptr;
    ucm_error error = new_error();
    const ucm_status status = p->open(&args.known, &store, &error);
    if (status == UCM_OK) {
        ucm_wait_args wait{sizeof wait, 0, -1};
        return ucm_close(store, &wait, nullptr, nullptr);
    }
    return error.code == status && error.message[0] ? status : UCM_INTERNAL;
}

}  // namespace

TEST_CASE("a bottom store opens by strides and refuses unknown flags", "[abi]") {
    const std::string name = GENERATE(from_range(built_plugins()));
    CAPTURE(name);
    if (plugin(name)->flags & UCM_PLUGIN_NEEDS_LOWER) return;
    constexpr uint64_t kUnknown = uint64_t(1) << 60;
    REQUIRE(open_bottom(name, [](ucm_open_args &, ucm_layout &) {}) == UCM_OK);
    REQUIRE(open_bottom(name, [](ucm_open_args &args, ucm_layout &) { args.flags |= kUnknown; }) ==
            UCM_UNSUPPORTED);
    REQUIRE(open_bottom(name, [](ucm_open_args &, ucm_layout &layout) {
                layout.flags |= kUnknown;
            }) == UCM_UNSUPPORTED);
    REQUIRE(open_bottom(name, [](ucm_open_args &args, ucm_layout &) {
                args.flags = UCM_OPEN_LOOKUP_ONLY;
                args.layout = nullptr;
            }) == UCM_OK);
}

TEST_CASE("a store takes no layout of memory that its plugin does not know", "[abi]") {
    const std::string name = GENERATE(from_range(built_plugins()));
    CAPTURE(name);
    const ucm_plugin *p = plugin(name);
    if ((p->flags & UCM_PLUGIN_NEEDS_LOWER) || (p->memories >> UCM_MEMORY_CUDA & 1)) return;
    if (name == "Empty" || name == "Fake") return;  // touch no memory of any kind
    REQUIRE(open_bottom(name, [](ucm_open_args &, ucm_layout &layout) {
                layout.memory = UCM_MEMORY_CUDA;
                layout.device = 0;
            }) == UCM_UNSUPPORTED);
}

TEST_CASE("copying between versions keeps what both know", "[abi]") {
    ucm_result old{sizeof(ucm_result), UCM_IO, 5, 1, 0, 77};
    Later<ucm_result> newer;
    ucm_copy(&newer, sizeof newer, &old);
    REQUIRE(newer.known.struct_size == sizeof newer);
    REQUIRE(newer.known.length == 77);
    for (unsigned char byte : newer.unknown) REQUIRE(byte == 0);

    Later<ucm_result> from;
    from.known.status = UCM_CORRUPT;
    ucm_result to;
    ucm_copy(&to, sizeof to, &from);
    REQUIRE(to.struct_size == sizeof to);
    REQUIRE(to.status == UCM_CORRUPT);

    struct Shorter {
        size_t struct_size;
        ucm_status status;
    } shorter{sizeof(Shorter), UCM_OK};
    ucm_copy(&to, sizeof to, &shorter);
    REQUIRE(to.length == 0);
}

TEST_CASE("a message that is too long is cut", "[abi]") {
    ucm_error error = new_error();
    const std::string text(2000, 'x');
    REQUIRE(ucm_fail(&error, UCM_IO, 5, text.c_str()) == UCM_IO);
    REQUIRE(std::strlen(error.message) == sizeof error.message - 1);
    REQUIRE(error.os_errno == 5);
    REQUIRE(ucm_fail(nullptr, UCM_IO, 5, "nobody reads it") == UCM_IO);
}
