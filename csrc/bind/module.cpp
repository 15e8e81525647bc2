// The compiled module: a list of exports. Tensors come as addresses that pycc.ops has checked.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "../core/simd.h"
#include "../ops/ablate.h"
#include "../ops/adaptive_sigma.h"
#include "../ops/deform_conv.h"
#include "../ops/density_map.h"
#include "../ops/keep_windows.h"
#include "../ops/log_probability.h"
#include "../ops/mask_hits.h"
#include "../ops/max_pair_sum.h"
#include "../ops/max_window_sum.h"
#include "../ops/paste_patch.h"
#include "../ops/topk_overlap.h"

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
    m.attr("max_population") = kMaxPopulation;
    const auto no_gil = py::call_guard<py::gil_scoped_release>();

    py::class_<Ablation>(m, "Ablation")
        .def(py::init([](Int images, Int channels, Int plane, Int draws, Int kept, bool by_element,
                         Int seed, Int first_image, Int first_draw) {
            return Ablation{images,
                            channels,
                            plane,
                            draws,
                            kept,
                            by_element,
                            static_cast<std::uint64_t>(seed),
                            first_image,
                            first_draw};
        }))
        .def_property_readonly("size", &Ablation::size);
    m.def(
        "ablate_cpu",
        [](Address out, Address images, Address fill, const Ablation& ablation, int threads) {
            ablate_cpu(pointer<float>(out), pointer<const float>(images),
                       pointer<const float>(fill), ablation, threads);
        },
        no_gil);
    m.def(
        "ablate_backward_cpu",
        [](Address grad_images, Address grad_out, const Ablation& ablation, int threads) {
            ablate_backward_cpu(pointer<float>(grad_images), pointer<const float>(grad_out),
                                ablation, threads);
        },
        no_gil);
    m.def(
        "ablation_indices_cpu",
        [](Address indices, const Ablation& ablation, int threads) {
            ablation_indices_cpu(pointer<Int>(indices), ablation, threads);
        },
        no_gil);
    py::class_<Draws>(m, "Draws")
        .def(py::init([](Address population, Address given, Address drawn, Int population_step,
                         Int given_step, Int drawn_step, Int count) {
            return Draws{pointer<const Int>(population),
                         pointer<const Int>(given),
                         pointer<const Int>(drawn),
                         population_step,
                         given_step,
                         drawn_step,
                         count};
        }));
    py::class_<DeformSizes>(m, "DeformSizes")
        .def(py::init([](Int images, Int channels, Int height, Int width, Int outputs) {
            return DeformSizes{images, channels, height, width, outputs};
        }));
    m.def(
        "deform_conv_cpu",
        [](Address out, Address x, Address offset, Address weight, const DeformSizes& sizes,
           int threads) {
            deform_conv_cpu(pointer<float>(out), pointer<const float>(x),
                            pointer<const float>(offset), pointer<const float>(weight), sizes,
                            threads);
        },
        no_gil);
    m.def(
        "deform_conv_grad_x_cpu",
        [](Address grad_x, Address grad_out, Address offset, Address weight,
           const DeformSizes& sizes, int threads) {
            deform_conv_grad_x_cpu(pointer<float>(grad_x), pointer<const float>(grad_out),
                                   pointer<const float>(offset), pointer<const float>(weight),
                                   sizes, threads);
        },
        no_gil);
    m.def(
        "deform_conv_grad_offset_cpu",
        [](Address grad_offset, Address grad_out, Address x, Address offset, Address weight,
           const DeformSizes& sizes, int threads) {
            deform_conv_grad_offset_cpu(pointer<float>(grad_offset), pointer<const float>(grad_out),
                                        pointer<const float>(x), pointer<const float>(offset),
                                        pointer<const float>(weight), sizes, threads);
        },
        no_gil);
    m.def(
        "deform_conv_grad_weight_cpu",
        [](Address grad_weight, Address grad_out, Address x, Address offset,
           const DeformSizes& sizes, int threads) {
            deform_conv_grad_weight_cpu(pointer<float>(grad_weight), pointer<const float>(grad_out),
                                        pointer<const float>(x), pointer<const float>(offset),
                                        sizes, threads);
        },
        no_gil);
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
    m.def(
        "log_probability_cpu",
        [](Address out, const Draws& draws, int event, int rounding, int threads) {
            log_probability_cpu(pointer<double>(out), draws, static_cast<Event>(event),
                                static_cast<Rounding>(rounding), threads);
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
    m.def(
        "topk_overlap_cpu",
        [](Address overlap, Address a, Address b, Int rows, Int cells, Int k, int threads) {
            topk_overlap_cpu(pointer<Int>(overlap), pointer<const float>(a),
                             pointer<const float>(b), rows, cells, k, threads);
        },
        no_gil);
    py::class_<SumSizes>(m, "SumSizes")
        .def(py::init([](Int maps, Int height, Int width, Int window_height, Int window_width) {
            return SumSizes{maps, height, width, window_height, window_width};
        }));
    m.def(
        "max_window_sum_cpu",
        [](Address sum, Address place, Address maps, const SumSizes& sizes, int threads) {
            max_window_sum_cpu(pointer<double>(sum), pointer<Int>(place),
                               pointer<const float>(maps), sizes, threads);
        },
        no_gil);

    m.def(
        "max_pair_sum_cpu",
        [](Address value, Address places, Address maps, Address allowance, const SumSizes& sizes,
           int threads) {
            max_pair_sum_cpu(pointer<double>(value), pointer<Int>(places),
                             pointer<const float>(maps), pointer<const double>(allowance), sizes,
                             threads);
        },
        no_gil);

    py::class_<HitSizes>(m, "HitSizes")
        .def(py::init([](Int sets, Int height, Int width, Int patch_height, Int patch_width) {
            return HitSizes{sets, height, width, patch_height, patch_width};
        }));
    m.def(
        "mask_hits_cpu",
        [](Address worst, Address indices, Address offsets, const HitSizes& sizes, int threads) {
            mask_hits_cpu(pointer<Int>(worst), pointer<const Int>(indices),
                          pointer<const Int>(offsets), sizes, threads);
        },
        no_gil);
    m.def(
        "mask_hits_dense_cpu",
        [](Address worst, Address masks, const HitSizes& sizes, int threads) {
            mask_hits_dense_cpu(pointer<Int>(worst), pointer<const std::uint8_t>(masks), sizes,
                                threads);
        },
        no_gil);

    py::class_<WindowSizes>(m, "WindowSizes")
        .def(py::init([](Int images, Int windows, Int channels, Int height, Int width,
                         Int window_height, Int window_width) {
            return WindowSizes{images, windows,       channels,    height,
                               width,  window_height, window_width};
        }));
    m.def(
        "keep_windows_cpu",
        [](Address out, Address images, Address top_left, Address fill, const WindowSizes& sizes,
           int threads) {
            keep_windows_cpu(pointer<float>(out), pointer<const float>(images),
                             pointer<const Int>(top_left), pointer<const float>(fill), sizes,
                             threads);
        },
        no_gil);
    m.def(
        "keep_windows_backward_cpu",
        [](Address grad_images, Address grad_out, Address top_left, const WindowSizes& sizes,
           int threads) {
            keep_windows_backward_cpu(pointer<float>(grad_images), pointer<const float>(grad_out),
                                      pointer<const Int>(top_left), sizes, threads);
        },
        no_gil);

#if defined(PYCC_CUDA)
    m.attr("cuda") = PYCC_CUDA_VERSION;
    m.attr("head_axes_bytes") = sizeof(HeadAxes);
    m.def(
        "ablate_cuda",
        [](Address out, Address bits, Address images, Address fill, const Ablation& ablation,
           Address stream) {
            ablate_cuda(pointer<float>(out), pointer<std::uint32_t>(bits),
                        pointer<const float>(images), pointer<const float>(fill), ablation,
                        reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "ablate_backward_cuda",
        [](Address grad_images, Address bits, Address grad_out, const Ablation& ablation,
           Address stream) {
            ablate_backward_cuda(pointer<float>(grad_images), pointer<std::uint32_t>(bits),
                                 pointer<const float>(grad_out), ablation,
                                 reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "ablation_indices_cuda",
        [](Address indices, Address bits, const Ablation& ablation, Address stream) {
            ablation_indices_cuda(pointer<Int>(indices), pointer<std::uint32_t>(bits), ablation,
                                  reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "deform_conv_cuda",
        [](Address out, Address x, Address offset, Address weight, const DeformSizes& sizes,
           Address stream) {
            deform_conv_cuda(pointer<float>(out), pointer<const float>(x),
                             pointer<const float>(offset), pointer<const float>(weight), sizes,
                             reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "deform_conv_grad_x_cuda",
        [](Address grad_x, Address grad_out, Address offset, Address weight,
           const DeformSizes& sizes, Address stream) {
            deform_conv_grad_x_cuda(pointer<float>(grad_x), pointer<const float>(grad_out),
                                    pointer<const float>(offset), pointer<const float>(weight),
                                    sizes, reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "deform_conv_grad_offset_cuda",
        [](Address grad_offset, Address grad_out, Address x, Address offset, Address weight,
           const DeformSizes& sizes, Address stream) {
            deform_conv_grad_offset_cuda(pointer<float>(grad_offset),
                                         pointer<const float>(grad_out), pointer<const float>(x),
                                         pointer<const float>(offset), pointer<const float>(weight),
                                         sizes, reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "deform_conv_grad_weight_cuda",
        [](Address grad_weight, Address grad_out, Address x, Address offset,
           const DeformSizes& sizes, Address stream) {
            deform_conv_grad_weight_cuda(pointer<float>(grad_weight),
                                         pointer<const float>(grad_out), pointer<const float>(x),
                                         pointer<const float>(offset), sizes,
                                         reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
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
    m.def(
        "log_probability_cuda",
        [](Address out, const Draws& draws, int event, int rounding, Address stream) {
            log_probability_cuda(pointer<double>(out), draws, static_cast<Event>(event),
                                 static_cast<Rounding>(rounding),
                                 reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def("mask_hits_scratch", &mask_hits_scratch);
    m.def(
        "mask_hits_cuda",
        [](Address hits, Address scratch, Address indices, Address offsets, Int first, Int last,
           Int begin, Int end, const HitSizes& sizes, Address stream) {
            mask_hits_cuda(pointer<std::int32_t>(hits), pointer<std::uint64_t>(scratch),
                           pointer<const Int>(indices), pointer<const Int>(offsets), first, last,
                           begin, end, sizes, reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "mask_hits_dense_cuda",
        [](Address hits, Address scratch, Address masks, Int first, Int last, const HitSizes& sizes,
           Address stream) {
            mask_hits_dense_cuda(pointer<std::int32_t>(hits), pointer<std::uint64_t>(scratch),
                                 pointer<const std::uint8_t>(masks), first, last, sizes,
                                 reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "keep_windows_cuda",
        [](Address out, Address images, Address top_left, Address fill, const WindowSizes& sizes,
           Address stream) {
            keep_windows_cuda(pointer<float>(out), pointer<const float>(images),
                              pointer<const Int>(top_left), pointer<const float>(fill), sizes,
                              reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "keep_windows_backward_cuda",
        [](Address grad_images, Address grad_out, Address top_left, const WindowSizes& sizes,
           Address stream) {
            keep_windows_backward_cuda(pointer<float>(grad_images), pointer<const float>(grad_out),
                                       pointer<const Int>(top_left), sizes,
                                       reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "topk_overlap_cuda",
        [](Address overlap, Address a, Address b, Int rows, Int cells, Int k, Address stream) {
            topk_overlap_cuda(pointer<Int>(overlap), pointer<const float>(a),
                              pointer<const float>(b), rows, cells, k,
                              reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.attr("max_shared_width") = kMaxSharedWidth;
    m.def(
        "max_window_sum_cuda",
        [](Address sum, Address place, Address columns, Address tails, Address row_best,
           Address maps, const SumSizes& sizes, Address stream) {
            max_window_sum_cuda(pointer<double>(sum), pointer<Int>(place), pointer<double>(columns),
                                pointer<double>(tails), pointer<BestWindow>(row_best),
                                pointer<const float>(maps), sizes,
                                reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
    m.def(
        "max_pair_sum_cuda",
        [](Address value, Address places, Address tables, Address sums, Address found,
           Address fullest, Address least, Address maps, Address allowance, const SumSizes& sizes,
           Address stream) {
            max_pair_sum_cuda(pointer<double>(value), pointer<Int>(places), pointer<double>(tables),
                              pointer<double>(sums), pointer<WindowPair>(found),
                              pointer<BestWindow>(fullest), pointer<double>(least),
                              pointer<const float>(maps), pointer<const double>(allowance), sizes,
                              reinterpret_cast<cudaStream_t>(stream));
        },
        no_gil);
#else
    m.attr("cuda") = py::none();
#endif
}
