// A stand-in for TensorRT's plugin registry that loads libraries and answers as the real one is documented to.

#include <NvInfer.h>
#include <dlfcn.h>

#include <cstring>
#include <vector>

namespace {

using namespace nvinfer1;

class MockRegistry final : public IPluginRegistry {
public:
    PluginLibraryHandle loadLibrary(AsciiChar const* path) noexcept override {
        void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) {
            return nullptr;
        }
        using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
        const auto get_creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
        if (get_creators == nullptr) {
            return nullptr;
        }
        int32_t count = 0;
        IPluginCreatorInterface* const* creators = get_creators(count);
        creators_.insert(creators_.end(), creators, creators + count);
        return library;
    }
    IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept override {
        *count = static_cast<int32_t>(creators_.size());
        return creators_.data();
    }
    IPluginCreatorInterface* getCreator(AsciiChar const* name, AsciiChar const* version,
                                        AsciiChar const* space) noexcept override {
        for (IPluginCreatorInterface* candidate : creators_) {
            auto* creator = static_cast<IPluginCreatorV3One*>(candidate);
            if (std::strcmp(creator->getPluginName(), name) == 0 &&
                std::strcmp(creator->getPluginVersion(), version) == 0 &&
                std::strcmp(creator->getPluginNamespace(), space) == 0) {
                return candidate;
            }
        }
        return nullptr;
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
    IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* count) noexcept override {
        return getAllCreators(count);
    }
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
    std::vector<IPluginCreatorInterface*> creators_;
};

}  // namespace

extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept {
    static MockRegistry registry;
    return &registry;
}
