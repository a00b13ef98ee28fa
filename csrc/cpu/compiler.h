// What the loops ask of the compiler; every macro may expand to nothing and results stay the same.
#pragma once

// one copy of a function per instruction set, chosen when the library is loaded
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define CTD_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CTD_CLONES
#endif

// into a function with clones, so that it takes over their instruction set
#if defined(__GNUC__)
#define CTD_INLINE inline __attribute__((always_inline))
#else
#define CTD_INLINE inline
#endif

// iterations of the next loop do not depend on each other
#if defined(__clang__)
#define CTD_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define CTD_INDEPENDENT _Pragma("GCC ivdep")
#elif defined(_MSC_VER)
#define CTD_INDEPENDENT __pragma(loop(ivdep))
#else
#define CTD_INDEPENDENT
#endif
