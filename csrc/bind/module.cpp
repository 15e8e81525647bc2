// The compiled module: a list of exports. Tensors come as addresses that pycc.ops has checked.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "../core/simd.h"
#include "../ops/density.h"
#include "../ops/paste.h"
#include "../ops/sigma.h"

namespace py = pybind11;
using namespace pycc;

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

using Address = std::uintptr_t;
using Int = std::int64_t;

}  // namespace

PYBIND11_MODULE(_pycc, m) {
    m.doc() = "Compiled kernels of pycc; use pycc.ops.";
    m.attr("version") = PYCC_VERSION;
    m.attr("compiler") = PYCC_COMPILER;
    m.attr("flags") = PYCC_FLAGS;
    m.attr("simd") = PYCC_SIMD_NAME;
    m.attr("max_neighbours") = kMaxNeighbours;
    const auto no_gil = py::call_guard<py::gil_scoped_release>();

    m.def(
        "density_map_cpu",
        [](Address map, Address pixels, Address sigma, Int count, Int height, Int width, Int stride,
           double truncate, int boundary, int threads) {
            density_map_cpu(pointer<float>(map), pointer<const Int>(pixels),
                            pointer<const double>(sigma), count, height, width, stride, truncate,
                            static_cast<Boundary>(boundary), threads);
        },
        no_gil);
    m.def(
        "adaptive_sigma_cpu",
        [](Address sigma, Address points, Int count, int neighbours, double beta, int threads) {
            adaptive_sigma_cpu(pointer<float>(sigma), pointer<const double>(points), count,
                               neighbours, beta, threads);
        },
        no_gil);

    py::class_<PasteSizes>(m, "PasteSizes")
        .def(py::init([](Int images, Int channels, Int height, Int width, Int patch_height,
                         Int patch_width, Int patches) {
            return PasteSizes{images, channels, height, width, patch_height, patch_width, patches};
        }));
    m.def(
        "paste_patch_cpu",
        [](Address out, Address images, Address patch, Address mask, Address top_left,
           Address transform, const PasteSizes& sizes, int sampling, int threads) {
            paste_patch_cpu(pointer<float>(out), pointer<const float>(images),
                            pointer<const float>(patch), pointer<const std::uint8_t>(mask),
                            pointer<const Int>(top_left), pointer<const double>(transform), sizes,
                            static_cast<Sampling>(sampling), threads);
        },
        no_gil);
    m.def(
        "paste_patch_backward_cpu",
        [](Address grad_patch, Address grad_out, Address patch, Address mask, Address top_left,
           Address transform, const PasteSizes& sizes, int sampling, int threads) {
            paste_patch_backward_cpu(pointer<float>(grad_patch), pointer<const float>(grad_out),
                                     pointer<const float>(patch), pointer<const std::uint8_t>(mask),
                                     pointer<const Int>(top_left), pointer<const double>(transform),
                                     sizes, static_cast<Sampling>(sampling), threads);
        },
        no_gil);

#if defined(PYCC_CUDA)
    m.attr("cuda") = PYCC_CUDA_VERSION;
    m.attr("head_axes_bytes") = sizeof(HeadAxes);
    m.def(
        "density_map_cuda",
        [](Address map, Address axes, Address pixels, Address sigma, Int count, Int height,
           Int width, Int stride, double truncate, int boundary, Address stream) {
            density_map_cuda(pointer<float>(map), pointer<HeadAxes>(axes),
                             pointer<const Int>(pixels), pointer<const double>(sigma), count,
                             height, width, stride, truncate, static_cast<Boundary>(boundary),
                             reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "adaptive_sigma_cuda",
        [](Address sigma, Address points, Int count, int neighbours, double beta, Address stream) {
            adaptive_sigma_cuda(pointer<float>(sigma), pointer<const double>(points), count,
                                neighbours, beta, reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "paste_patch_cuda",
        [](Address out, Address images, Address patch, Address mask, Address top_left,
           Address transform, const PasteSizes& sizes, int sampling, Address stream) {
            paste_patch_cuda(pointer<float>(out), pointer<const float>(images),
                             pointer<const float>(patch), pointer<const std::uint8_t>(mask),
                             pointer<const Int>(top_left), pointer<const double>(transform), sizes,
                             static_cast<Sampling>(sampling),
                             reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "paste_patch_backward_cuda",
        [](Address grad_patch, Address grad_out, Address patch, Address mask, Address top_left,
           Address transform, const PasteSizes& sizes, int sampling, Address stream) {
            paste_patch_backward_cuda(
                pointer<float>(grad_patch), pointer<const float>(grad_out),
                pointer<const float>(patch), pointer<const std::uint8_t>(mask),
                pointer<const Int>(top_left), pointer<const double>(transform), sizes,
                static_cast<Sampling>(sampling), reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
#else
    m.attr("cuda") = py::none();
#endif
}
