// SPDX-License-Identifier: MIT
//
// Every legal pipeline of the layers that are built, each layer at most once, over every bottom:
// ours, the test's Memory and the C example Heap.
#pragma once

#include "harness.h"

namespace ucm_test {

using Layers = std::vector<std::string>;

inline std::vector<Layers> all_pipelines() {
    std::vector<Layers> pipelines;
    for (const Layers &upper :
         {Layers{}, {"Compress"}, {"Cache"}, {"Cache", "Compress"}, {"Compress", "Cache"}})
        for (const std::string &bottom :
             std::vector<std::string>{"Posix", "Memory", "Empty", "Fake", "Heap"}) {
            // Sanitizers are slow; above these bottoms nothing runs that does not run above others.
            if (kSanitizer && !upper.empty() && bottom != "Posix" && bottom != "Memory") continue;
            Layers layers = upper;
            layers.push_back(bottom);
            bool built = true;
            for (const std::string &name : layers) built &= name == "Memory" || has_plugin(name);
            if (built) pipelines.push_back(layers);
        }
    if (has_plugin("Fault")) {
        pipelines.push_back({"Fault", "Memory"});
        if (has_plugin("Cache")) pipelines.push_back({"Cache", "Fault", "Memory"});
    }
    return pipelines;
}

inline std::string text_of(const Layers &layers) {
    std::string text;
    for (const std::string &name : layers) {
        if (!text.empty()) text += '|';
        text += name;
    }
    return text;
}

// A pipeline that can be closed and opened again over the same stored data.
class Pipeline {
  public:
    explicit Pipeline(Layers layers, Geometry geometry = {}, Options options = {})
        : layers_(std::move(layers)), geometry_(std::move(geometry)), options_(std::move(options)) {
        for (const std::string &name : layers_) {
            if (name == "Posix") options_["storage_backends"] = directory_.path();
            if (name == "Cache") options_.emplace("cache_buffer_capacity_gb", "0.015625");
        }
        open();
    }

    Stack &operator*() const { return *stack_; }
    Stack *operator->() const { return stack_.get(); }
    bool has(const std::string &layer) const {
        return std::find(layers_.begin(), layers_.end(), layer) != layers_.end();
    }
    Memory &memory() const { return *memory_; }
    const TempDir &directory() const { return directory_; }

    void open() {
        stack_.reset();
        stack_ = std::make_unique<Stack>(layers_, options_, geometry_, memory_);
    }
    // Another one beside it, of another shape.
    std::unique_ptr<Stack> beside(Geometry geometry) const {
        return std::make_unique<Stack>(layers_, options_, std::move(geometry), memory_);
    }

  private:
    Layers layers_;
    Geometry geometry_;
    Options options_;
    TempDir directory_;
    std::shared_ptr<Memory> memory_ = std::make_shared<Memory>();
    std::unique_ptr<Stack> stack_;
};

}  // namespace ucm_test

// At the head of a test: runs it once for each pipeline.
#define FOR_EACH_PIPELINE(layers)                                        \
    const auto layers = GENERATE(from_range(ucm_test::all_pipelines())); \
    INFO("pipeline " << ucm_test::text_of(layers))
