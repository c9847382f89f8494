// The device type `xpu` on host memory, for PyTorch builds that know the type but have
// no kernels for it. Simulated: it proves dispatch, shapes, dtypes and errors, not speed.
//
// Tensors are ordinary host allocations under the XPU dispatch key. The few operations
// that create, copy or view storage are registered here; every other operation goes
// through PyTorch's own CPU fallback.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/XPUHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_to_copy_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

constexpr c10::DispatchKeySet kXpu{c10::DispatchKey::XPU};

// ---- device, stream and memory -------------------------------------------------

struct HostAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? c10::GetCPUAllocator()->raw_allocate(bytes) : nullptr;
    return {data, data, &release, Device(DeviceType::XPU, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &release;
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  static void release(void* data) {
    if (data) c10::GetCPUAllocator()->raw_deallocate(data);
  }
};

HostAllocator allocator;
REGISTER_ALLOCATOR(DeviceType::XPU, &allocator)

struct OneDeviceGuard final : c10::impl::DeviceGuardImplInterface {
  static constexpr DeviceType static_type = DeviceType::XPU;
  DeviceType type() const override {
    return DeviceType::XPU;
  }
  Device exchangeDevice(Device) const override {
    return getDevice();
  }
  Device getDevice() const override {
    return {DeviceType::XPU, 0};
  }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override {
    return Stream(Stream::DEFAULT, getDevice());
  }
  Stream getDefaultStream(Device d) const override {
    return getStream(d);
  }
  Stream getNewStream(Device d, int) const override {
    return getStream(d);
  }
  Stream getStreamFromGlobalPool(Device d, bool) const override {
    return getStream(d);
  }
  Stream exchangeStream(Stream) const override {
    return getStream(getDevice());
  }
  DeviceIndex deviceCount() const noexcept override {
    return 1;
  }
  // Every operation has finished when it returns, so there is never anything to wait for.
  void record(void**, const Stream&, DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override {
    return true;
  }
  bool queryStream(const Stream&) const override {
    return true;
  }
  // Overrides from some release after PyTorch 2.11 on.
  bool isStreamCapturing(const Stream&) const {
    return false;
  }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
  void destroyEvent(void*, DeviceIndex) const noexcept override {}
};

C10_REGISTER_GUARD_IMPL(XPU, OneDeviceGuard)

// PyTorch looks these up by the class name.
struct XPUHooks final : at::XPUHooksInterface {
  // PyTorch 2.11 makes it with arguments, 2.14 without.
  template <class... Args>
  explicit XPUHooks(Args&&...) {}
  void init() const override {}
  // hasXPU() and isBuilt() stay false: a build for CUDA refuses to hold two accelerators.
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(DeviceIndex) const override {
    return true;
  }
  std::string showConfig() const override {
    return "simulated XPU on host memory";
  }
  DeviceIndex getNumGPUs() const override {
    return 1;
  }
  DeviceIndex deviceCount() const override {
    return 1;
  }
  DeviceIndex current_device() const override {
    return 0;
  }
  DeviceIndex getCurrentDevice() const override {
    return 0;
  }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override {
    return 0;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override {
    return 0;
  }
  int32_t getGlobalIdxFromDevice(const Device&) const override {
    return 0;
  }
  Device getDeviceFromPtr(void*) const override {
    return {DeviceType::XPU, 0};
  }
  void deviceSynchronize(DeviceIndex) const override {}
  at::Allocator* getPinnedMemoryAllocator() const override {
    return c10::GetCPUAllocator();
  }
  // Random operations fall back to the CPU, whose kernels want a CPU generator.
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(DeviceIndex) const override {
    return at::detail::createCPUGenerator();
  }
};

} // namespace

namespace at {
REGISTER_XPU_HOOKS(XPUHooks)
} // namespace at

namespace {

// ---- operations on storage -----------------------------------------------------

// The same memory as a CPU tensor; it must not outlive `t`.
at::Tensor on_host(const at::Tensor& t) {
  if (t.device().is_cpu()) return t;
  auto cpu = at::from_blob(
      t.data_ptr(), t.sizes(), t.strides(), t.options().device(at::kCPU).pinned_memory(false));
  if (t.is_conj()) cpu._set_conj(true);
  if (t.is_neg()) cpu._set_neg(true);
  return cpu;
}

at::Tensor empty(
    c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(size), &allocator, kXpu, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator, kXpu,
      c10::dtype_or_default(dtype));
}

const at::Tensor& resize_(
    const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  at::native::resize_impl_cpu_(
      self.unsafeGetTensorImpl(), C10_AS_INTARRAYREF_SLOW(size), /*stride=*/std::nullopt);
  if (format) self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return self;
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& src, bool) {
  if (self.numel()) on_host(self).copy_(on_host(src));
  return self;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& dst, bool) {
  if (dst.numel()) on_host(dst).copy_(on_host(self));
  return dst;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& dst) {
  if (self.sizes() != dst.sizes()) dst.resize_(self.sizes());
  return copy_from(self, dst, false);
}

// Non-blocking copies to the host would ask for pinned memory, which a build for CUDA
// takes from the driver.
at::Tensor to_copy(
    const at::Tensor& self, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
    std::optional<Device> device, std::optional<bool>, bool,
    std::optional<at::MemoryFormat> format) {
  return at::native::_to_copy(self, dtype, layout, device, false, false, format);
}

at::Tensor as_strided(
    const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
    std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start;
  if (offset) start = offset->expect_int();
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

at::Scalar local_scalar(const at::Tensor& self) {
  return on_host(self).item();
}

at::Tensor& set_storage(
    at::Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size,
    c10::SymIntArrayRef stride) {
  at::native::checkSetStorage(
      self, std::move(source), offset.expect_int(), C10_AS_INTARRAYREF_SLOW(size),
      C10_AS_INTARRAYREF_SLOW(stride));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), offset.expect_int());
  return self;
}

// Its choice of a backend goes through a dispatch stub, which the fallback doesn't reach.
at::Tensor attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& mask, double dropout, bool causal,
    std::optional<double> scale, bool gqa) {
  std::optional<at::Tensor> host_mask;
  if (mask && mask->defined()) host_mask = on_host(*mask);
  return at::scaled_dot_product_attention(
             on_host(query), on_host(key), on_host(value), host_mask, dropout, causal, scale, gqa)
      .to(query.device());
}

void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, XPU, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("resize_", &resize_);
  m.impl("copy_", &copy_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_to_copy", &to_copy);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("scaled_dot_product_attention", &attention);
}

TORCH_LIBRARY_IMPL(_, XPU, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

} // namespace
