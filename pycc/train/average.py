"""The counter that a training validates and keeps: its model, or a running mean of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pycc.models import CounterModel


class KeptCounter:
    """A model in training, or with a ``decay`` the exponential mean of its weights."""

    def __init__(self, model: CounterModel, decay: float | None) -> None:
        self._model = model
        self._average: AveragedModel | None = None
        if decay is not None:
            mean = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            self._average = AveragedModel(model, multi_avg_fn=mean)

    def update(self) -> None:
        """Take the weights of the model after a step into the mean."""
        if self._average is not None:
            self._average.update_parameters(self._model)

    @property
    def counter(self) -> CounterModel:
        """The counter, in eval mode."""
        counter = self._model if self._average is None else self._average.module
        assert isinstance(counter, CounterModel)
        return counter.eval()

    @property
    def weights(self) -> dict[str, Tensor]:
        """A copy of the network's weights on the CPU."""
        state = self.counter.net.state_dict()
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def buffers(self) -> Iterator[Tensor]:
        """The running statistics of the model and, if there is one, of the mean."""
        yield from self._model.buffers()
        if self._average is not None:
            yield from self._average.module.buffers()

    def mean_state(self) -> Mapping[str, Tensor] | None:
        """The state of the mean, for a checkpoint; None without a mean."""
        return None if self._average is None else self._average.state_dict()

    def restore_mean(self, state: Mapping[str, Tensor] | None) -> None:
        """Continue with the mean of a checkpoint."""
        if self._average is not None and state is not None:
            self._average.load_state_dict(state)
