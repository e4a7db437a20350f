// Drives the TensorRT wrapper as a builder and a runtime would, without TensorRT: creator, shape inference, format
// negotiation, serialization, execution and everything that is to be refused. It is not TensorRT: it shows that the
// wrapper keeps its side of the interface, nothing about the other side. A real registry and parser create the plugin in
// test_rtx.py; TensorRT-RTX has no layer for it, so what a layer does is driven only here.
//
// Kernels run on the CPU through the emulator, so an execution here has a result.

#include <NvInfer.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

namespace {

using namespace nvinfer1;

int failures = 0;

void expect(bool holds, const char* what, int line) {
    if (!holds) {
        std::printf("line %d: %s\n", line, what);
        ++failures;
    }
}
#define EXPECT(condition) expect((condition), #condition, __LINE__)

class MockLogger final : public ILogger {
public:
    void log(Severity severity, char const* message) noexcept override {
        EXPECT(severity == Severity::kERROR);
        last_ = message;
    }
    // Whether the last message since the previous question had this in it.
    bool logged(const char* part) {
        const bool found = last_.find(part) != std::string::npos;
        if (!found) {
            std::printf("logged '%s', not '%s'\n", last_.c_str(), part);
        }
        last_.clear();
        return found;
    }
    bool silent() const { return last_.empty(); }

private:
    std::string last_;
};

MockLogger logger;

class MockLoggerFinder final : public ILoggerFinder {
public:
    ILogger* findLogger() override { return &logger; }
};

// A dimension: a constant, or -1 for one that is known only at run time.
class MockExpression final : public IDimensionExpr {
public:
    explicit MockExpression(int64_t value) : value_(value) { mImpl = &value_; }

private:
    class Value final : public apiv::VDimensionExpr {
    public:
        explicit Value(int64_t value) : value_(value) {}
        bool isConstant() const override { return value_ >= 0; }
        int64_t getConstantValue() const override { return value_; }
        bool isSizeTensor() const override { return false; }

    private:
        int64_t value_;
    } value_;
};

class MockExprBuilder final : public IExprBuilder {
public:
    MockExprBuilder() { mImpl = &maker_; }

private:
    class Maker final : public apiv::VExprBuilder {
    public:
        IDimensionExpr const* constant(int64_t value) override {
            made_.push_back(std::make_unique<MockExpression>(value));
            return made_.back().get();
        }
        IDimensionExpr const* operation(DimensionOperation, IDimensionExpr const&, IDimensionExpr const&) override {
            return nullptr;
        }
        IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override {
            return nullptr;
        }

    private:
        std::vector<std::unique_ptr<MockExpression>> made_;
    } maker_;
};

IPluginCreatorV3One& creator() {
    int32_t count = 0;
    IPluginCreatorInterface* const* creators = getCreators(count);
    EXPECT(count == 1);
    return *static_cast<IPluginCreatorV3One*>(creators[0]);
}

std::unique_ptr<IPluginV3> create(PluginFieldCollection const* fields, TensorRTPhase phase = TensorRTPhase::kBUILD) {
    return std::unique_ptr<IPluginV3>(creator().createPlugin("/MaxMinDiversity", fields, phase));
}

std::unique_ptr<IPluginV3> create_with(int32_t keep) {
    const PluginField field("k", &keep, PluginFieldType::kINT32, 1);
    const PluginFieldCollection fields{1, &field};
    return create(&fields);
}

IPluginV3OneBuild& build_side(IPluginV3& plugin) {
    return *static_cast<IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
}

IPluginV3OneRuntime& runtime_side(IPluginV3& plugin) {
    return *static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

// The keep of a plugin as it would be stored in a plan.
int32_t serialized_keep(IPluginV3& plugin) {
    PluginFieldCollection const* fields = runtime_side(plugin).getFieldsToSerialize();
    EXPECT(fields->nbFields == 1 && std::strcmp(fields->fields[0].name, "k") == 0);
    EXPECT(fields->fields[0].type == PluginFieldType::kINT32 && fields->fields[0].length == 1);
    return *static_cast<const int32_t*>(fields->fields[0].data);
}

PluginTensorDesc tensor(DataType type, std::vector<int64_t> shape, TensorFormat format = TensorFormat::kLINEAR) {
    PluginTensorDesc desc{};
    desc.type = type;
    desc.format = format;
    desc.dims.nbDims = static_cast<int32_t>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) {
        desc.dims.d[i] = shape[i];
    }
    return desc;
}

DynamicPluginTensorDesc profile(DataType type, std::vector<int64_t> least, std::vector<int64_t> most) {
    DynamicPluginTensorDesc desc{};
    desc.desc = tensor(type, most);
    desc.min = tensor(type, least).dims;
    desc.opt = desc.max = desc.desc.dims;
    return desc;
}

void test_creator() {
    EXPECT(std::strcmp(creator().getPluginName(), "MaxMinDiversity") == 0);
    EXPECT(std::strcmp(creator().getPluginVersion(), "1") == 0);
    EXPECT(std::strcmp(creator().getPluginNamespace(), "") == 0);
    PluginFieldCollection const* names = creator().getFieldNames();
    EXPECT(names->nbFields == 1 && std::strcmp(names->fields[0].name, "k") == 0);

    const int64_t wide = 58;
    const PluginField as_int64("k", &wide, PluginFieldType::kINT64, 1);
    const PluginFieldCollection int64_fields{1, &as_int64};
    EXPECT(serialized_keep(*create(&int64_fields)) == 58);
    EXPECT(serialized_keep(*create_with(7)) == 7);

    // Other attributes of the node are passed over; a missing or unusable k is refused.
    const int32_t keep = 5;
    const float real = 5.0f;
    const int64_t huge = 1ll << 40;
    const int32_t zero = 0;
    const PluginField others[] = {PluginField(nullptr, &keep, PluginFieldType::kINT32, 1),
                                  PluginField("other", &keep, PluginFieldType::kINT32, 1),
                                  PluginField("k", &keep, PluginFieldType::kINT32, 1)};
    const PluginFieldCollection several{3, others};
    EXPECT(serialized_keep(*create(&several)) == 5);
    const PluginField unusable[] = {
        PluginField("k", &real, PluginFieldType::kFLOAT32, 1), PluginField("k", nullptr, PluginFieldType::kINT32, 1),
        PluginField("k", &keep, PluginFieldType::kINT32, 2),   PluginField("k", &zero, PluginFieldType::kINT32, 1),
        PluginField("k", &huge, PluginFieldType::kINT64, 1),   PluginField("other", &keep, PluginFieldType::kINT32, 1)};
    for (const PluginField& field : unusable) {
        const PluginFieldCollection fields{1, &field};
        EXPECT(create(&fields) == nullptr);
        EXPECT(logger.logged("/MaxMinDiversity' needs the attribute k"));
    }
    EXPECT(create(nullptr) == nullptr);
    EXPECT(logger.logged("needs the attribute k"));
}

void test_identity_of_a_plugin() {
    const auto plugin = create_with(7);
    auto* core = static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
    EXPECT(std::strcmp(core->getPluginName(), "MaxMinDiversity") == 0);
    EXPECT(std::strcmp(core->getPluginVersion(), "1") == 0);
    EXPECT(std::strcmp(core->getPluginNamespace(), "") == 0);
    EXPECT(plugin->getCapabilityInterface(static_cast<PluginCapabilityType>(99)) == nullptr);
    EXPECT(build_side(*plugin).getNbOutputs() == 2);

    // Through a plan and back, by copy and per context: the budget stays, the objects are their own.
    PluginFieldCollection const* fields = runtime_side(*plugin).getFieldsToSerialize();
    const auto restored = create(fields, TensorRTPhase::kRUNTIME);
    const std::unique_ptr<IPluginV3> copy(plugin->clone());
    const std::unique_ptr<IPluginV3> attached(runtime_side(*plugin).attachToContext(nullptr));
    EXPECT(serialized_keep(*restored) == 7 && serialized_keep(*copy) == 7 && serialized_keep(*attached) == 7);
    EXPECT(runtime_side(*copy).getFieldsToSerialize() != fields);
    EXPECT(copy.get() != plugin.get() && attached.get() != plugin.get());
}

void test_types() {
    const auto plugin = create_with(7);
    DataType outputs[2];
    for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
        const DataType inputs[] = {type, DataType::kBOOL};
        EXPECT(build_side(*plugin).getOutputDataTypes(outputs, 2, inputs, 2) == 0);
        EXPECT(outputs[0] == type && outputs[1] == DataType::kINT64);
    }
    const DataType integers[] = {DataType::kINT8, DataType::kBOOL};
    EXPECT(build_side(*plugin).getOutputDataTypes(outputs, 2, integers, 2) != 0);
    EXPECT(logger.logged("visual_tokens must be float32, float16 or bfloat16"));
    const DataType no_mask[] = {DataType::kHALF, DataType::kINT32};
    EXPECT(build_side(*plugin).getOutputDataTypes(outputs, 2, no_mask, 2) != 0);
    EXPECT(logger.logged("valid must be bool"));
    EXPECT(build_side(*plugin).getOutputDataTypes(outputs, 1, no_mask, 2) != 0);
    EXPECT(logger.logged("2 inputs (visual_tokens, valid) and 2 outputs"));
}

void test_shapes() {
    const auto plugin = create_with(58);
    MockExprBuilder builder;
    const MockExpression batch(-1), rows(576), few(57), width(4096), unknown(-1);
    const auto infer = [&](const IDimensionExpr& n, int32_t token_dims, int32_t inputs, DimsExprs* outputs) {
        DimsExprs in[2]{};
        in[0].nbDims = token_dims;
        in[0].d[0] = &batch;
        in[0].d[1] = &n;
        in[0].d[2] = &width;
        in[1].nbDims = 2;
        in[1].d[0] = &batch;
        in[1].d[1] = &n;
        return build_side(*plugin).getOutputShapes(in, inputs, nullptr, 0, outputs, 2, builder);
    };
    DimsExprs out[2]{};
    EXPECT(infer(rows, 3, 2, out) == 0);
    EXPECT(out[0].nbDims == 3 && out[0].d[0] == &batch && out[0].d[2] == &width);
    EXPECT(out[0].d[1]->isConstant() && out[0].d[1]->getConstantValue() == 58);
    EXPECT(out[1].nbDims == 2 && out[1].d[0] == &batch && out[1].d[1]->getConstantValue() == 58);
    EXPECT(infer(unknown, 3, 2, out) == 0);
    EXPECT(infer(few, 3, 2, out) != 0);
    EXPECT(logger.logged("k = 58 is more than the 57 rows"));
    EXPECT(infer(rows, 4, 2, out) != 0);
    EXPECT(logger.logged("but they have 4 and 2 dimensions"));
    EXPECT(infer(rows, 3, 1, out) != 0);
    EXPECT(logger.logged("not 1 and 2"));
}

void test_formats() {
    const auto plugin = create_with(7);
    IPluginV3OneBuild& build = build_side(*plugin);
    const auto offer = [&](int32_t position, DataType tokens, DataType valid, DataType kept, DataType indices,
                           TensorFormat format = TensorFormat::kLINEAR) {
        DynamicPluginTensorDesc descs[4]{};
        const DataType types[] = {tokens, valid, kept, indices};
        for (int i = 0; i < 4; ++i) {
            descs[i].desc.type = types[i];
            descs[i].desc.format = i == position ? format : TensorFormat::kLINEAR;
        }
        return build.supportsFormatCombination(position, descs, 2, 2);
    };
    constexpr DataType kHalf = DataType::kHALF, kBool = DataType::kBOOL, kLong = DataType::kINT64;
    for (int position = 0; position < 4; ++position) {
        for (const DataType type : {DataType::kFLOAT, kHalf, DataType::kBF16}) {
            EXPECT(offer(position, type, kBool, type, kLong));
        }
        EXPECT(!offer(position, kHalf, kBool, kHalf, kLong, TensorFormat::kCHW32));
    }
    EXPECT(!offer(0, DataType::kINT8, kBool, kHalf, kLong));
    EXPECT(!offer(1, kHalf, DataType::kINT32, kHalf, kLong));
    EXPECT(!offer(2, kHalf, kBool, DataType::kFLOAT, kLong));
    EXPECT(!offer(3, kHalf, kBool, kHalf, DataType::kINT32));
    DynamicPluginTensorDesc descs[4]{};
    EXPECT(!build.supportsFormatCombination(4, descs, 2, 2));
    EXPECT(!build.supportsFormatCombination(-1, descs, 2, 2));
    EXPECT(!build.supportsFormatCombination(0, descs, 3, 2));
}

void test_configuration() {
    const auto plugin = create_with(7);
    IPluginV3OneBuild& build = build_side(*plugin);
    const auto configure = [&](DynamicPluginTensorDesc tokens, DynamicPluginTensorDesc valid) {
        const DynamicPluginTensorDesc inputs[] = {tokens, valid};
        return build.configurePlugin(inputs, 2, nullptr, 2);
    };
    const auto half = [](std::vector<int64_t> least, std::vector<int64_t> most) {
        return profile(DataType::kHALF, least, most);
    };
    const auto mask = [](std::vector<int64_t> least, std::vector<int64_t> most) {
        return profile(DataType::kBOOL, least, most);
    };
    EXPECT(configure(half({1, 576, 64}, {8, 576, 64}), mask({1, 576}, {8, 576})) == 0);
    EXPECT(logger.silent());
    EXPECT(configure(half({1, 576, 60}, {1, 576, 60}), mask({1, 576}, {1, 576})) != 0);
    EXPECT(logger.logged("[1, 576, 60] with k = 7: The width of a token must be a multiple of 8"));
    EXPECT(configure(half({1, 6, 64}, {1, 576, 64}), mask({1, 6}, {1, 576})) != 0);
    EXPECT(logger.logged("between 1 and the number of candidates"));
    EXPECT(configure(half({1, 99999, 64}, {1, 99999, 64}), mask({1, 99999}, {1, 99999})) != 0);
    EXPECT(logger.logged("candidates must be between 1 and 32768"));
    EXPECT(configure(half({1, 576, 64}, {1, 576, 64}), mask({1, 576}, {2, 576})) != 0);
    EXPECT(logger.logged("valid is [2, 576], but visual_tokens has 1 x 576 rows"));
    EXPECT(configure(half({0, 576, 64}, {8, 576, 64}), mask({0, 576}, {8, 576})) != 0);
    EXPECT(logger.logged("dimension 0 of visual_tokens is 0"));
    EXPECT(configure(half({1, 576}, {1, 576}), mask({1, 576}, {1, 576})) != 0);
    EXPECT(logger.logged("but they have 2 and 2 dimensions"));
    EXPECT(build.configurePlugin(nullptr, 1, nullptr, 2) != 0);
    EXPECT(logger.logged("not 1 and 2"));

    const DynamicPluginTensorDesc fixed[] = {half({1, 576, 4096}, {1, 576, 4096}), mask({1, 576}, {1, 576})};
    const DynamicPluginTensorDesc moving[] = {half({1, 576, 4096}, {4, 576, 4096}), mask({1, 576}, {4, 576})};
    const size_t fixed_bytes = build.getWorkspaceSize(fixed, 2, nullptr, 2);
    const size_t moving_bytes = build.getWorkspaceSize(moving, 2, nullptr, 2);
    EXPECT(fixed_bytes > 576 * 576 * 4 && moving_bytes > 4 * 576 * 576 * 4);
    // The bound covers the smaller batches, whose sums are split into more parts.
    EXPECT(moving_bytes > fixed_bytes);
}

void test_execution() {
    const auto plugin = create_with(2);
    IPluginV3OneRuntime& runtime = runtime_side(*plugin);
    constexpr int kRows = 4, kWidth = 8;
    // Rows 0 and 2 point the same way, row 3 the other way, row 1 is not valid.
    alignas(16) float tokens[kRows * kWidth] = {};
    tokens[0 * kWidth] = 1.0f;
    tokens[1 * kWidth + 1] = 1.0f;
    tokens[2 * kWidth] = 2.0f;
    tokens[3 * kWidth] = -1.0f;
    const bool valid[kRows] = {true, false, true, true};
    alignas(16) float kept[2 * kWidth] = {};
    int64_t indices[2] = {-1, -1};

    PluginTensorDesc in[] = {tensor(DataType::kFLOAT, {1, kRows, kWidth}), tensor(DataType::kBOOL, {1, kRows})};
    PluginTensorDesc out[] = {tensor(DataType::kFLOAT, {1, 2, kWidth}), tensor(DataType::kINT64, {1, 2})};
    const DynamicPluginTensorDesc sizes[] = {profile(DataType::kFLOAT, {1, kRows, kWidth}, {1, kRows, kWidth}),
                                             profile(DataType::kBOOL, {1, kRows}, {1, kRows})};
    const size_t bytes = build_side(*plugin).getWorkspaceSize(sizes, 2, nullptr, 2);
    void* workspace = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    const void* inputs[] = {tokens, valid};
    void* outputs[] = {kept, indices};

    EXPECT(runtime.onShapeChange(in, 2, out, 2) == 0);
    EXPECT(runtime.enqueue(in, out, inputs, outputs, workspace, nullptr) == 0);
    EXPECT(indices[0] == 0 && indices[1] == 3);
    EXPECT(std::memcmp(kept, tokens, sizeof(float) * kWidth) == 0);
    EXPECT(std::memcmp(kept + kWidth, tokens + 3 * kWidth, sizeof(float) * kWidth) == 0);
    EXPECT(logger.silent());

    void* no_outputs[] = {kept, nullptr};
    EXPECT(runtime.enqueue(in, out, inputs, no_outputs, workspace, nullptr) != 0);
    EXPECT(logger.logged("A required pointer is null."));
    EXPECT(runtime.enqueue(in, out, inputs, outputs, nullptr, nullptr) != 0);
    EXPECT(logger.logged("A required pointer is null."));
    const void* misaligned[] = {tokens + 1, valid};
    EXPECT(runtime.enqueue(in, out, misaligned, outputs, workspace, nullptr) != 0);
    EXPECT(logger.logged("must start on 16 bytes"));
    PluginTensorDesc odd[] = {tensor(DataType::kFLOAT, {1, kRows, 9}), in[1]};
    EXPECT(runtime.enqueue(odd, out, inputs, outputs, workspace, nullptr) != 0);
    EXPECT(logger.logged("multiple of 8"));
    EXPECT(runtime.onShapeChange(odd, 2, out, 2) != 0);
    EXPECT(logger.logged("multiple of 8"));
    PluginTensorDesc single[] = {tensor(DataType::kFLOAT, {1, 1, kWidth}), tensor(DataType::kBOOL, {1, 1})};
    EXPECT(runtime.onShapeChange(single, 2, out, 2) != 0);
    EXPECT(logger.logged("with k = 2: The number of kept tokens"));
    EXPECT(runtime.onShapeChange(in, 2, out, 3) != 0);
    EXPECT(logger.logged("not 2 and 3"));
    std::free(workspace);
}

}  // namespace

int main() {
    // Without a logger, refusals go to standard error and nothing fails.
    EXPECT(create(nullptr) == nullptr);
    MockLoggerFinder finder;
    setLoggerFinder(&finder);
    test_creator();
    test_identity_of_a_plugin();
    test_types();
    test_shapes();
    test_formats();
    test_configuration();
    test_execution();
    std::printf("TensorRT %d.%d headers: %d failures\n", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, failures);
    return failures == 0 ? 0 : 1;
}
