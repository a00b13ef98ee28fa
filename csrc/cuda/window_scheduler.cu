// The scheduling decision of schedule.h as one block of one launch, on the caller's stream.
#include <cuda_runtime.h>

#include "schedule.h"
#include "window_scheduler.h"

namespace ctd {

namespace {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 512;  // more would spill registers
constexpr unsigned kWholeWarp = 0xffffffffu;

// A block of whole warps; `partial` holds one value per warp and is free outside of a call.
class CudaBlock {
 public:
  __device__ explicit CudaBlock(std::int64_t* partial) : partial_(partial) {}

  __device__ std::int64_t rank() const { return threadIdx.x; }
  __device__ std::int64_t size() const { return blockDim.x; }
  __device__ void sync() { __syncthreads(); }

  __device__ Sum exclusive_sum(std::int64_t value) {
    const std::int64_t in_warp = inclusive_sum_of_warp(value);
    if (lane() == kWarpSize - 1) partial_[warp()] = in_warp;
    __syncthreads();
    if (warp() == 0) {
      partial_[lane()] = inclusive_sum_of_warp(lane() < num_warps() ? partial_[lane()] : 0);
    }
    __syncthreads();
    const std::int64_t warps_before = warp() > 0 ? partial_[warp() - 1] : 0;
    const Sum sum{warps_before + in_warp - value, partial_[kWarpSize - 1]};
    __syncthreads();
    return sum;
  }

  __device__ std::int64_t min(std::int64_t value) {
    const std::int64_t in_warp = min_of_warp(value);
    if (lane() == 0) partial_[warp()] = in_warp;
    __syncthreads();
    const std::int64_t result = min_of_warp(lane() < num_warps() ? partial_[lane()] : kMost);
    __syncthreads();
    return result;
  }

 private:
  __device__ int lane() const { return threadIdx.x % kWarpSize; }
  __device__ int warp() const { return threadIdx.x / kWarpSize; }
  __device__ int num_warps() const { return blockDim.x / kWarpSize; }

  __device__ std::int64_t inclusive_sum_of_warp(std::int64_t value) const {
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const std::int64_t other = __shfl_up_sync(kWholeWarp, value, distance);
      if (lane() >= distance) value += other;
    }
    return value;
  }

  __device__ std::int64_t min_of_warp(std::int64_t value) const {
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
      value = least(value, __shfl_xor_sync(kWholeWarp, value, distance));
    }
    return value;
  }

  std::int64_t* partial_;
};

__global__ void __launch_bounds__(kMaxThreads, 1)
    schedule_begin_kernel(std::int64_t* state, std::int64_t* rows) {
  __shared__ std::int64_t partial[kWarpSize];
  CudaBlock block(partial);
  schedule_begin(block, State(state, rows));
}

__global__ void __launch_bounds__(kMaxThreads, 1)
    schedule_step_kernel(std::int64_t* state, std::int64_t* rows, const std::int64_t* accepted,
                         const std::int64_t* finite) {
  __shared__ std::int64_t partial[kWarpSize];
  CudaBlock block(partial);
  schedule_step(block, State(state, rows), accepted, finite);
}

template <class T = std::int64_t>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

int num_threads(const CudaSchedule& schedule) {
  const std::int64_t widest = -least(-schedule.num_slots, -schedule.max_rows);
  const std::int64_t whole_warps = (least(widest, kMaxThreads) + kWarpSize - 1) / kWarpSize;
  return static_cast<int>(whole_warps * kWarpSize);
}

const char* message(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* schedule_begin_cuda(const CudaSchedule& schedule) {
  // the statically linked runtime has a current device of its own
  cudaError_t error = cudaSetDevice(static_cast<int>(schedule.device));
  if (error != cudaSuccess) return message(error);
  // load the step's kernel now: its first launch may be captured into a graph, which can't load it
  cudaFuncAttributes attributes;
  error = cudaFuncGetAttributes(&attributes, schedule_step_kernel);
  if (error != cudaSuccess) return message(error);
  schedule_begin_kernel<<<1, num_threads(schedule), 0, pointer<CUstream_st>(schedule.stream)>>>(
      pointer(schedule.state), pointer(schedule.rows));
  return message(cudaGetLastError());
}

const char* schedule_step_cuda(const CudaSchedule& schedule, std::uintptr_t accepted,
                               std::uintptr_t finite) {
  const cudaError_t error = cudaSetDevice(static_cast<int>(schedule.device));
  if (error != cudaSuccess) return message(error);
  schedule_step_kernel<<<1, num_threads(schedule), 0, pointer<CUstream_st>(schedule.stream)>>>(
      pointer(schedule.state), pointer(schedule.rows), pointer(accepted), pointer(finite));
  return message(cudaGetLastError());
}

}  // namespace ctd
