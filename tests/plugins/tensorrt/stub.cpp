// What TensorRT's Python bindings need from libnvinfer, libnvonnxparser and libnvinfer_plugin to be imported: a
// stand-in, not TensorRT. Nothing can be built or run with it.

extern "C" {

// mock_registry.cpp has a better one where TensorRT's headers are at hand.
__attribute__((weak)) void* getPluginRegistry() { return nullptr; }

void* createInferBuilder_INTERNAL(void*, int) { return nullptr; }
void* createInferRefitter_INTERNAL(void*, void*, int) { return nullptr; }
void* createInferRuntime_INTERNAL(void*, int) { return nullptr; }
void* getBuilderPluginRegistry(int) { return nullptr; }
void* createNvOnnxParser_INTERNAL(void*, void*, int) { return nullptr; }
void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int) { return nullptr; }
int getNvOnnxParserVersion() { return 0; }
bool initLibNvInferPlugins(void*, const char*) { return true; }
}
