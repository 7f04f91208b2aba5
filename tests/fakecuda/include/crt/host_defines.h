// The words of CUDA's headers that a C compiler does not know. The wheels leave this header out.
#pragma once
#define __host__
#define __device__
#define __global__
#define __shared__
#define __constant__
#define __managed__
#define __cudart_builtin__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __no_return__ __attribute__((noreturn))
#define __forceinline__ inline
#define __noinline__
#define __align__(n) __attribute__((aligned(n)))
#define __thread__ __thread
#define __import__
#define __export__
#define __location__(a)
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __specialization_static static
#define __CUDA_ARCH_HAS_FEATURE__(x) 0
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __nv_pure__
#define __grid_constant__
#define __cluster_dims__(...)
