"""The compiled module: addresses and sizes that pycc.ops has checked."""

version: str
compiler: str
flags: str
simd: str
max_neighbours: int
max_population: int
cuda: str | None
head_axes_bytes: int  # CUDA builds only
max_shared_width: int  # CUDA builds only

class Ablation:
    def __init__(
        self,
        images: int,
        channels: int,
        plane: int,
        draws: int,
        kept: int,
        by_element: bool,
        seed: int,
        first_image: int,
        first_draw: int,
    ) -> None: ...
    @property
    def size(self) -> int: ...

class Draws:
    def __init__(
        self,
        population: int,
        given: int,
        drawn: int,
        population_step: int,
        given_step: int,
        drawn_step: int,
        count: int,
    ) -> None: ...

class PasteSizes:
    def __init__(
        self,
        images: int,
        channels: int,
        height: int,
        width: int,
        patch_height: int,
        patch_width: int,
        patches: int,
    ) -> None: ...

def ablate_cpu(out: int, images: int, fill: int, ablation: Ablation, threads: int) -> None: ...
def ablate_cuda(
    out: int, bits: int, images: int, fill: int, ablation: Ablation, stream: int
) -> None: ...
def ablate_backward_cpu(
    grad_images: int, grad_out: int, ablation: Ablation, threads: int
) -> None: ...
def ablate_backward_cuda(
    grad_images: int, bits: int, grad_out: int, ablation: Ablation, stream: int
) -> None: ...
def ablation_indices_cpu(indices: int, ablation: Ablation, threads: int) -> None: ...
def ablation_indices_cuda(indices: int, bits: int, ablation: Ablation, stream: int) -> None: ...

class DeformSizes:
    def __init__(
        self, images: int, channels: int, height: int, width: int, outputs: int
    ) -> None: ...

def deform_conv_cpu(
    out: int, x: int, offset: int, weight: int, sizes: DeformSizes, threads: int
) -> None: ...
def deform_conv_cuda(
    out: int, x: int, offset: int, weight: int, sizes: DeformSizes, stream: int
) -> None: ...
def deform_conv_grad_x_cpu(
    grad_x: int, grad_out: int, offset: int, weight: int, sizes: DeformSizes, threads: int
) -> None: ...
def deform_conv_grad_x_cuda(
    grad_x: int, grad_out: int, offset: int, weight: int, sizes: DeformSizes, stream: int
) -> None: ...
def deform_conv_grad_offset_cpu(
    grad_offset: int,
    grad_out: int,
    x: int,
    offset: int,
    weight: int,
    sizes: DeformSizes,
    threads: int,
) -> None: ...
def deform_conv_grad_offset_cuda(
    grad_offset: int,
    grad_out: int,
    x: int,
    offset: int,
    weight: int,
    sizes: DeformSizes,
    stream: int,
) -> None: ...
def deform_conv_grad_weight_cpu(
    grad_weight: int, grad_out: int, x: int, offset: int, sizes: DeformSizes, threads: int
) -> None: ...
def deform_conv_grad_weight_cuda(
    grad_weight: int, grad_out: int, x: int, offset: int, sizes: DeformSizes, stream: int
) -> None: ...

class SumSizes:
    def __init__(
        self, maps: int, height: int, width: int, window_height: int, window_width: int
    ) -> None: ...

def density_map_cpu(
    map: int,
    pixels: int,
    sigma: int,
    count: int,
    height: int,
    width: int,
    stride: int,
    truncate: float,
    boundary: int,
    threads: int,
) -> None: ...
def density_map_cuda(
    map: int,
    axes: int,
    pixels: int,
    sigma: int,
    count: int,
    height: int,
    width: int,
    stride: int,
    truncate: float,
    boundary: int,
    stream: int,
) -> None: ...
def adaptive_sigma_cpu(
    sigma: int, points: int, count: int, neighbours: int, beta: float, threads: int
) -> None: ...
def adaptive_sigma_cuda(
    sigma: int, points: int, count: int, neighbours: int, beta: float, stream: int
) -> None: ...
def paste_patch_cpu(
    out: int,
    images: int,
    patch: int,
    mask: int,
    top_left: int,
    transform: int,
    sizes: PasteSizes,
    sampling: int,
    threads: int,
) -> None: ...
def paste_patch_cuda(
    out: int,
    images: int,
    patch: int,
    mask: int,
    top_left: int,
    transform: int,
    sizes: PasteSizes,
    sampling: int,
    stream: int,
) -> None: ...
def paste_patch_backward_cpu(
    grad_patch: int,
    grad_out: int,
    patch: int,
    mask: int,
    top_left: int,
    transform: int,
    sizes: PasteSizes,
    sampling: int,
    threads: int,
) -> None: ...
def paste_patch_backward_cuda(
    grad_patch: int,
    grad_out: int,
    patch: int,
    mask: int,
    top_left: int,
    transform: int,
    sizes: PasteSizes,
    sampling: int,
    stream: int,
) -> None: ...
def log_probability_cpu(
    out: int, draws: Draws, event: int, rounding: int, threads: int
) -> None: ...
def log_probability_cuda(
    out: int, draws: Draws, event: int, rounding: int, stream: int
) -> None: ...

class WindowSizes:
    def __init__(
        self,
        images: int,
        windows: int,
        channels: int,
        height: int,
        width: int,
        window_height: int,
        window_width: int,
    ) -> None: ...

def keep_windows_cpu(
    out: int, images: int, top_left: int, fill: int, sizes: WindowSizes, threads: int
) -> None: ...
def keep_windows_cuda(
    out: int, images: int, top_left: int, fill: int, sizes: WindowSizes, stream: int
) -> None: ...
def keep_windows_backward_cpu(
    grad_images: int, grad_out: int, top_left: int, sizes: WindowSizes, threads: int
) -> None: ...
def keep_windows_backward_cuda(
    grad_images: int, grad_out: int, top_left: int, sizes: WindowSizes, stream: int
) -> None: ...

class HitSizes:
    def __init__(
        self, sets: int, height: int, width: int, patch_height: int, patch_width: int
    ) -> None: ...

def mask_hits_cpu(
    worst: int, indices: int, offsets: int, sizes: HitSizes, threads: int
) -> None: ...
def mask_hits_dense_cpu(worst: int, masks: int, sizes: HitSizes, threads: int) -> None: ...
def mask_hits_scratch(sizes: HitSizes) -> int: ...  # CUDA builds only
def mask_hits_cuda(
    hits: int,
    scratch: int,
    indices: int,
    offsets: int,
    first: int,
    last: int,
    begin: int,
    end: int,
    sizes: HitSizes,
    stream: int,
) -> None: ...
def mask_hits_dense_cuda(
    hits: int, scratch: int, masks: int, first: int, last: int, sizes: HitSizes, stream: int
) -> None: ...
def topk_overlap_cpu(
    overlap: int, a: int, b: int, rows: int, cells: int, k: int, threads: int
) -> None: ...
def topk_overlap_cuda(
    overlap: int, a: int, b: int, rows: int, cells: int, k: int, stream: int
) -> None: ...
def max_window_sum_cpu(sum: int, place: int, maps: int, sizes: SumSizes, threads: int) -> None: ...
def max_window_sum_cuda(
    sum: int,
    place: int,
    columns: int,
    tails: int,
    row_best: int,
    maps: int,
    sizes: SumSizes,
    stream: int,
) -> None: ...
def max_pair_sum_cpu(
    value: int, places: int, maps: int, allowance: int, sizes: SumSizes, threads: int
) -> None: ...
def max_pair_sum_cuda(
    value: int,
    places: int,
    tables: int,
    sums: int,
    found: int,
    fullest: int,
    least: int,
    maps: int,
    allowance: int,
    sizes: SumSizes,
    stream: int,
) -> None: ...
