// Launches of the scheduling kernels. All return nullptr, or what CUDA says is wrong.
#pragma once

#include <cstdint>

namespace ctd {

// What a launch needs: device addresses, the device's index and a stream of it (a cudaStream_t).
struct CudaSchedule {
  std::uintptr_t state, rows;
  std::int64_t num_slots, max_rows, device;
  std::uintptr_t stream;
};

const char* schedule_begin_cuda(const CudaSchedule& schedule);
const char* schedule_step_cuda(const CudaSchedule& schedule, std::uintptr_t accepted,
                               std::uintptr_t finite);

}  // namespace ctd
