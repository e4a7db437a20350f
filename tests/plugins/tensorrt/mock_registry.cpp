// A stand-in for TensorRT's plugin registry, which hands our creators to TensorRT's Python bindings. How the registry
// itself loads and finds them is TensorRT-RTX's to prove (test_rtx.py): it has the classes of TensorRT 11, but those of
// TensorRT 10 and its bindings only meet here.

#include <NvInfer.h>
#include <dlfcn.h>

namespace {

using namespace nvinfer1;

class MockRegistry final : public IPluginRegistry {
public:
    PluginLibraryHandle loadLibrary(AsciiChar const* path) noexcept override {
        void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
        creators_ = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"))(count_);
        return library;
    }
    IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept override {
        *count = count_;
        return creators_;
    }
    IPluginCreatorInterface* getCreator(AsciiChar const*, AsciiChar const*, AsciiChar const*) noexcept override {
        return creators_ == nullptr ? nullptr : creators_[0];
    }

    void setErrorRecorder(IErrorRecorder*) noexcept override {}
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
    bool isParentSearchEnabled() const override { return false; }
    void setParentSearchEnabled(bool) override {}
    void deregisterLibrary(PluginLibraryHandle) noexcept override {}
    bool registerCreator(IPluginCreatorInterface&, AsciiChar const*) noexcept override { return false; }
    bool deregisterCreator(IPluginCreatorInterface const&) noexcept override { return false; }
    IPluginResource* acquirePluginResource(AsciiChar const*, IPluginResource*) noexcept override { return nullptr; }
    int32_t releasePluginResource(AsciiChar const*) noexcept override { return 0; }
#if NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR > 3
    IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* count) noexcept override {
        return getAllCreators(count);
    }
#endif
#if NV_TENSORRT_MAJOR < 11
    bool registerCreator(IPluginCreator&, AsciiChar const*) noexcept override { return false; }
    IPluginCreator* const* getPluginCreatorList(int32_t* count) const noexcept override {
        *count = 0;
        return nullptr;
    }
    IPluginCreator* getPluginCreator(AsciiChar const*, AsciiChar const*, AsciiChar const*) noexcept override {
        return nullptr;
    }
    bool deregisterCreator(IPluginCreator const&) noexcept override { return false; }
#endif

private:
    IPluginCreatorInterface* const* creators_ = nullptr;
    int32_t count_ = 0;
};

}  // namespace

extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept {
    static MockRegistry registry;
    return &registry;
}
