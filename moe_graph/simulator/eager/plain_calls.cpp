/* The most usual call of an operator on NPU tensors: by the CPU's kernel, or by a function on CPU tensors, on the same memory.
 *
 * What `call.Operator` does in Python for every call, this does for a plain one: tensors of one device, numbers, lists of both. Whatever
 * is not plain goes to the operator's Python kernel, which is registered under another key (FALLBACK): a capture, an observer of launches,
 * a profiler, tensors of several devices, and every call that is refused, so that errors are Python's. `plain_calls.py` builds this
 * file and says which operators it serves, and under which conditions. */
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/record_function.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <atomic>
#include <cstring>
#include <vector>

namespace {

constexpr auto FALLBACK = c10::DispatchKey::PrivateUse3;
constexpr auto FUNCTION = c10::DispatchKey::PrivateUse2; /* the function on CPU tensors, where there is one */
constexpr int NOWHERE = -1;
constexpr size_t LARGE = size_t(256) << 20; /* bytes from which on Python looks whether this machine can hold them (host_memory.c) */

/* How an operator's float16 and bfloat16 tensors are computed by the CPU's kernel (plain_calls.py). */
enum Halves : int { AS_THEY_ARE, NOT_AT_ALL, IF_ONE, AS_A_PRODUCT };

struct Conditions {
    bool by_kernel;   /* may the CPU's kernel compute it, under the conditions that follow? */
    bool by_function; /* is there a function? */
    Halves halves;
    bool int32;    /* are int32 tensors taken as they are? */
    int if_one;    /* the position of the argument that IF_ONE looks at */
    int dtype;     /* positions of arguments, or NOWHERE */
    int device;
    int pin_memory;
};

/* Counters of what Python must see: captured streams (the C runtime's own), and observers of launches. */
const volatile int *captured_streams = nullptr;
const volatile int *observers = nullptr;

std::atomic<uint64_t> served_calls{0};

bool is_half(const at::Tensor &tensor)
{
    return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

bool is_one(const c10::IValue &value)
{
    if (value.isBool())
        return !value.toBool(); /* a switch that is off */
    return (value.isInt() && value.toInt() == 1) || (value.isDouble() && value.toDouble() == 1.0);
}

/* The NPU tensors of one call and their CPU views, which live no longer than the call. */
class Views {
public:
    /* The argument on the CPU; false if the call is not plain. */
    bool add(const c10::IValue &value, std::vector<c10::IValue> &arguments)
    {
        if (value.isTensor()) {
            at::Tensor cpu;
            if (!view(value.toTensor(), cpu))
                return false;
            arguments.emplace_back(std::move(cpu));
        } else if (value.isTensorList()) {
            c10::List<at::Tensor> list;
            for (const at::Tensor &npu : value.toTensorVector()) {
                at::Tensor cpu;
                if (!view(npu, cpu))
                    return false;
                list.push_back(std::move(cpu));
            }
            arguments.emplace_back(std::move(list));
        } else if (value.isOptionalTensorList()) {
            c10::List<std::optional<at::Tensor>> list;
            for (const c10::IValue &item : value.toListRef()) {
                at::Tensor cpu;
                if (item.isTensor() && !view(item.toTensor(), cpu))
                    return false;
                list.push_back(item.isTensor() ? std::optional<at::Tensor>(std::move(cpu)) : std::nullopt);
            }
            arguments.emplace_back(std::move(list));
        } else {
            arguments.push_back(value);
        }
        return true;
    }

    bool has_device() const { return !pairs_.empty(); }
    c10::Device device() const { return pairs_.front().npu.device(); }
    bool has_half() const { return has_half_; }
    bool has_int32() const { return has_int32_; }

    /* A result on the device: the argument that it is, an alias of the argument in whose memory it lies, or a new tensor. */
    c10::IValue to_device(const c10::IValue &value) const
    {
        if (value.isTensor())
            return to_device(value.toTensor());
        if (value.isTensorList()) {
            c10::List<at::Tensor> list;
            for (const at::Tensor &item : value.toTensorVector())
                list.push_back(to_device(item));
            return list;
        }
        return value;
    }

    /* An out= tensor that was resized in its memory: so is the caller's. */
    void write_back() const
    {
        for (const Pair &pair : pairs_)
            if (pair.cpu.sizes() != pair.npu.sizes())
                at::Tensor(pair.npu).set_(pair.npu.storage(), pair.cpu.storage_offset(), pair.cpu.sizes(), pair.cpu.strides());
    }

private:
    struct Pair {
        at::Tensor npu, cpu;
    };

    bool view(const at::Tensor &npu, at::Tensor &cpu)
    {
        if (!npu.defined())
            return true;
        const auto keys = npu.key_set();
        if (!keys.has(c10::DispatchKey::PrivateUse1)) {
            cpu = npu;
            return npu.is_cpu() && npu.dim() == 0 && npu.layout() == at::kStrided; /* a number */
        }
        if (npu.is_cpu() || npu.nbytes() >= LARGE || npu.is_conj() || npu.is_neg() || (!pairs_.empty() && npu.device() != device()))
            return false;
        has_half_ = has_half_ || is_half(npu);
        has_int32_ = has_int32_ || npu.scalar_type() == at::kInt;
        c10::Storage shared;
        for (const Pair &pair : pairs_) {
            if (pair.npu.is_same(npu)) {
                cpu = pair.cpu;
                return true;
            }
            if (pair.npu.storage().unsafeGetStorageImpl() == npu.storage().unsafeGetStorageImpl())
                shared = pair.cpu.storage();
        }
        const size_t size = npu.storage().nbytes();
        const size_t needed = at::detail::computeStorageNbytes(npu.sizes(), npu.strides(), npu.element_size(), npu.storage_offset());
        if (npu.numel() != 0 && needed > size)
            return false;
        if (!shared)
            shared = c10::Storage(c10::Storage::use_byte_size_t(), size,
                                  c10::DataPtr(npu.storage().unsafeGetStorageImpl()->mutable_data(), at::kCPU), nullptr, false);
        cpu = at::detail::make_tensor<c10::TensorImpl>(std::move(shared), c10::DispatchKeySet(c10::DispatchKey::CPU), npu.dtype());
        cpu.unsafeGetTensorImpl()->set_sizes_and_strides(npu.sizes(), npu.strides(), npu.storage_offset());
        pairs_.push_back({npu, cpu});
        return true;
    }

    at::Tensor to_device(const at::Tensor &value) const
    {
        if (!value.defined() || !value.is_cpu())
            return value;
        for (const Pair &pair : pairs_)
            if (pair.cpu.is_same(value))
                return pair.npu;
        if (value.layout() != at::kStrided) { /* torch moves its parts, and makes the whole on the current device */
            const c10::DeviceGuard guard(device());
            return value.to(device());
        }
        const auto options = value.options().device(device());
        for (const Pair &pair : pairs_)
            if (pair.cpu.storage().unsafeGetStorageImpl() == value.storage().unsafeGetStorageImpl()) {
                at::Tensor alias = at::empty({0}, options);
                alias.set_(pair.npu.storage(), value.storage_offset(), value.sizes(), value.strides());
                alias._set_conj(value.is_conj());
                alias._set_neg(value.is_neg());
                return alias;
            }
        return new_tensor(value.resolve_conj().resolve_neg(), options);
    }

    static at::Tensor new_tensor(const at::Tensor &value, const c10::TensorOptions &options)
    {
        /* Strides without gaps and overlaps are kept; what is left is laid out as torch lays out a copy. */
        const at::Tensor dense = value.is_contiguous() || value.is_non_overlapping_and_dense() ? value : value.clone();
        at::Tensor made = at::empty_strided(dense.sizes(), dense.strides(), options);
        if (dense.nbytes() >= LARGE)
            return made.copy_(dense); /* by Python */
        if (dense.nbytes() != 0)
            std::memcpy(made.mutable_data_ptr(), dense.const_data_ptr(), dense.nbytes());
        return made;
    }

    std::vector<Pair> pairs_;
    bool has_half_ = false, has_int32_ = false;
};

class PlainCall : public c10::OperatorKernel {
public:
    explicit PlainCall(const Conditions &conditions) : conditions_(conditions) {}

    void operator()(const c10::OperatorHandle &op, c10::DispatchKeySet, torch::jit::Stack *stack)
    {
        if (*captured_streams != 0 || *observers != 0 || at::hasCallbacks() || !compute(op, *stack))
            op.redispatchBoxed(c10::DispatchKeySet(FALLBACK), stack);
    }

private:
    /* False, with nothing computed, if the call is not plain, or the CPU's kernel refuses it. */
    bool compute(const c10::OperatorHandle &op, torch::jit::Stack &stack) const
    {
        const size_t count = op.schema().arguments().size();
        const c10::IValue *given = stack.data() + (stack.size() - count);
        if (op.schema().is_mutable() && given[0].isTensor() && given[0].toTensor().defined() && given[0].toTensor().is_cpu())
            return false; /* it writes to a CPU tensor */
        if (conditions_.pin_memory != NOWHERE && given[conditions_.pin_memory].isBool() && given[conditions_.pin_memory].toBool())
            return false;
        Views views;
        torch::jit::Stack arguments;
        arguments.reserve(count);
        for (size_t i = 0; i < count; i++)
            if (!views.add(given[i], arguments))
                return false;
        if (!views.has_device())
            return false;
        if (conditions_.device != NOWHERE && !given[conditions_.device].isNone()) {
            if (given[conditions_.device].toDevice() != views.device())
                return false;
            arguments[conditions_.device] = c10::Device(at::kCPU);
        }
        const bool by_kernel = conditions_.by_kernel && is_the_kernels(views, given);
        if (!by_kernel && !conditions_.by_function)
            return false;
        if (by_kernel && conditions_.halves == AS_A_PRODUCT && views.has_half())
            for (size_t i = 0; i < 2; i++)
                arguments[i] = arguments[i].toTensor().contiguous();
        try {
            /* The NPU's dtypes are settled already, the CPU's autocast must not change them. */
            c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
            if (by_kernel)
                op.callBoxed(&arguments);
            else
                op.redispatchBoxed(c10::DispatchKeySet(FUNCTION), &arguments);
        } catch (const std::exception &) {
            return false;
        }
        views.write_back();
        torch::jit::drop(stack, count);
        for (const c10::IValue &result : arguments)
            stack.push_back(views.to_device(result));
        served_calls.fetch_add(1, std::memory_order_relaxed);
        return true;
    }

    /* Does the CPU's kernel, as it is, compute what a device does with tensors of these dtypes? */
    bool is_the_kernels(const Views &views, const c10::IValue *given) const
    {
        if (views.has_int32() && !conditions_.int32)
            return false;
        if (conditions_.dtype != NOWHERE && !given[conditions_.dtype].isNone())
            return false;
        if (!views.has_half())
            return true;
        switch (conditions_.halves) {
        case AS_THEY_ARE:
            return true;
        case IF_ONE:
            return is_one(given[conditions_.if_one]);
        case AS_A_PRODUCT:
            return is_product_of_halves(given);
        default:
            return false;
        }
    }

    static bool is_product_of_halves(const c10::IValue *given)
    {
        if (!given[0].isTensor() || !given[1].isTensor())
            return false;
        const at::Tensor &left = given[0].toTensor(), &right = given[1].toTensor();
        return left.scalar_type() == right.scalar_type() && left.dim() > 1 && right.dim() > 1;
    }

    const Conditions conditions_;
};

/* Never destroyed: when the process ends the dispatcher may be gone before this library. */
auto &registered = *new std::vector<c10::RegistrationHandleRAII>;

} // namespace

extern "C" __attribute__((visibility("default"))) void moe_plain_calls_watch(const int *streams, const int *python)
{
    captured_streams = streams;
    observers = python;
}

extern "C" __attribute__((visibility("default"))) uint64_t moe_plain_calls_count() { return served_calls; }

/* Serve an operator, whose Python kernel is registered under FALLBACK. Returns false if it cannot be. */
extern "C" __attribute__((visibility("default"))) bool moe_plain_calls_serve(const char *name, const char *overload, bool by_kernel,
                                                                              bool by_function, int halves, bool int32, int if_one, int dtype,
                                                                              int device, int pin_memory)
{
    try {
        const Conditions conditions{by_kernel, by_function, static_cast<Halves>(halves), int32, if_one, dtype, device, pin_memory};
        auto kernel = c10::KernelFunction::makeFromBoxedFunctor(std::make_unique<PlainCall>(conditions));
        registered.push_back(c10::Dispatcher::singleton().registerImpl(c10::OperatorName(name, overload), c10::DispatchKey::PrivateUse1,
                                                                       std::move(kernel), {}, nullptr, "moe_graph/simulator/eager/plain_calls.cpp"));
        return true;
    } catch (const std::exception &) {
        return false;
    }
}
