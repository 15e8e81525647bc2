// The compiled module: a list of its kernels. bind.h deduces their Python signatures.
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
#include "../ops/pair_extremes.h"
#include "../ops/paste_patch.h"
#include "../ops/topk_overlap.h"
#include "bind.h"

using namespace pycc;
using namespace pycc::binding;
using density_map::Boundary;
using log_probability::Event;
using log_probability::Rounding;
using paste_patch::Sampling;

#if defined(PYCC_CUDA)
#define PYCC_KERNEL(name, cpu, cuda) kernel(m, name "_cpu", &cpu), kernel(m, name "_cuda", &cuda)
#else
#define PYCC_KERNEL(name, cpu, cuda) kernel(m, name "_cpu", &cpu)
#define PYCC_CUDA_VERSION py::none()
#endif

PYBIND11_MODULE(_pycc, m) {
    m.doc() = "Compiled kernels of pycc; use pycc.ops.";
    m.attr("version") = PYCC_VERSION;
    m.attr("compiler") = PYCC_COMPILER;
    m.attr("flags") = PYCC_FLAGS;
    m.attr("simd") = PYCC_SIMD_NAME;
    m.attr("cuda") = PYCC_CUDA_VERSION;
    m.attr("max_neighbours") = adaptive_sigma::kMaxNeighbours;
    m.attr("max_population") = log_probability::kMaxPopulation;
    m.attr("max_shared_width") = max_window_sum::kMaxSharedWidth;
    m.attr("head_axes_bytes") = sizeof(density_map::HeadAxes);
    m.attr("best_window_bytes") = sizeof(window_sums::BestWindow);
    m.attr("window_pair_bytes") = sizeof(max_pair_sum::WindowPair);
    m.attr("kernels") = py::dict();
#if defined(PYCC_CUDA_HOST)
    m.def("emulate", [](std::uint64_t seed, std::int64_t most_blocks) {
        host::emulation = {seed, most_blocks};
    });
#endif

    enumeration<Boundary>(m, "Boundary",
                          {{"clip", Boundary::clip},
                           {"renormalize", Boundary::renormalize},
                           {"reflect", Boundary::reflect}});
    enumeration<Event>(m, "Event", {{"untouched", Event::untouched}, {"inside", Event::inside}});
    enumeration<Rounding>(
        m, "Rounding",
        {{"down", Rounding::down}, {"nearest", Rounding::nearest}, {"up", Rounding::up}});
    enumeration<Sampling>(m, "Sampling",
                          {{"single", Sampling::single}, {"nested", Sampling::nested}});

    PYCC_STRUCT(m, ablate::Ablation, "Ablation", images, channels, plane, draws, kept, by_element,
                seed, first_image, first_draw)
        .def_property_readonly("words", &ablate::Ablation::words);
    PYCC_STRUCT(m, deform_conv::Sizes, "DeformSizes", images, channels, height, width, outputs);
    PYCC_STRUCT(m, keep_windows::Sizes, "WindowSizes", images, windows, channels, height, width,
                window_height, window_width);
    PYCC_STRUCT(m, log_probability::Steps, "Steps", population, given, drawn, count);
    PYCC_STRUCT(m, mask_hits::Sizes, "HitSizes", sets, height, width, patch_height, patch_width)
        .def_property_readonly("scratch_words", &mask_hits::scratch_words);
    PYCC_STRUCT(m, pair_extremes::Sizes, "PairSizes", height, width, rows, columns, row_spans,
                column_spans, window_height, window_width);
    PYCC_STRUCT(m, paste_patch::Sizes, "PasteSizes", images, channels, height, width, patch_height,
                patch_width, patches);
    PYCC_STRUCT(m, window_sums::Sizes, "SumSizes", maps, height, width, window_height,
                window_width);

    PYCC_KERNEL("ablate", ablate::cpu, ablate::cuda);
    PYCC_KERNEL("ablate_backward", ablate::backward_cpu, ablate::backward_cuda);
    PYCC_KERNEL("ablation_indices", ablate::indices_cpu, ablate::indices_cuda);
    PYCC_KERNEL("adaptive_sigma", adaptive_sigma::cpu, adaptive_sigma::cuda);
    PYCC_KERNEL("deform_conv", deform_conv::cpu, deform_conv::cuda);
    PYCC_KERNEL("deform_conv_grad_offset", deform_conv::grad_offset_cpu,
                deform_conv::grad_offset_cuda);
    PYCC_KERNEL("deform_conv_grad_weight", deform_conv::grad_weight_cpu,
                deform_conv::grad_weight_cuda);
    PYCC_KERNEL("deform_conv_grad_x", deform_conv::grad_x_cpu, deform_conv::grad_x_cuda);
    PYCC_KERNEL("density_map", density_map::cpu, density_map::cuda);
    PYCC_KERNEL("keep_windows", keep_windows::cpu, keep_windows::cuda);
    PYCC_KERNEL("keep_windows_backward", keep_windows::backward_cpu, keep_windows::backward_cuda);
    PYCC_KERNEL("log_probability", log_probability::cpu, log_probability::cuda);
    PYCC_KERNEL("mask_hits", mask_hits::cpu, mask_hits::cuda);
    PYCC_KERNEL("mask_hits_dense", mask_hits::dense_cpu, mask_hits::dense_cuda);
    PYCC_KERNEL("max_pair_sum", max_pair_sum::cpu, max_pair_sum::cuda);
    PYCC_KERNEL("max_window_sum", max_window_sum::cpu, max_window_sum::cuda);
    PYCC_KERNEL("pair_extremes", pair_extremes::cpu, pair_extremes::cuda);
    PYCC_KERNEL("paste_patch", paste_patch::cpu, paste_patch::cuda);
    PYCC_KERNEL("paste_patch_backward", paste_patch::backward_cpu, paste_patch::backward_cuda);
    PYCC_KERNEL("topk_overlap", topk_overlap::cpu, topk_overlap::cuda);
}
