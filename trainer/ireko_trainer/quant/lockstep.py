"""Forward passes that can be stopped at a layer and taken up again.

To quantize a matrix one needs its inputs under everything that is quantized before it, from all calibration batches,
before any batch may pass the matrix. Running the block again for each of its matrices costs several passes; here each
batch runs once, in a thread of its own, and waits at every matrix until the others have arrived and the matrix is
quantized. One thread runs at any time and in a fixed order, so results do not depend on timing; threads serve as
coroutines, because a forward pass cannot yield.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


class _AbandonedError(BaseException):
    """Raised inside a stopped pass that nobody will take up again."""


class _Pass:
    """One forward pass. `resume` runs it to its next stop; it is then `at` a module with `input`, or done."""

    def __init__(self, call: Callable[[], Tensor]) -> None:
        self.at: str | None = None
        self.input: Tensor | None = None
        self.result: Tensor | None = None
        self._error: BaseException | None = None
        self._abandoned = False
        self._call = call
        self._turn, self._yielded = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def resume(self) -> None:
        self._turn.release()
        self._yielded.acquire()
        if self._error is not None:
            raise self._error

    def stop_at(self, name: str, values: Tensor) -> None:
        """Called in the pass's own thread."""
        self.at, self.input = name, values
        self._yielded.release()
        self._turn.acquire()
        self.at = self.input = None
        if self._abandoned:
            raise _AbandonedError

    def abandon(self) -> None:
        if self.thread.is_alive():
            self._abandoned = True
            self._turn.release()
            self.thread.join()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self._abandoned:
                with torch.no_grad():
                    self.result = self._call()
        except _AbandonedError:
            pass
        except BaseException as error:  # handed to the thread that resumed this one
            self._error = error
        finally:
            self._yielded.release()


class Lockstep:
    """Forward passes through one module, stopping at each of the named submodules the first time it is called.

    with Lockstep(calls, stops={"mlp.down_proj": module}) as passes:
        passes.arrive("mlp.down_proj")   # every pass runs up to there; returns the inputs, one tensor per pass
        passes.finish()                  # and to its end; returns the results
    """

    def __init__(self, calls: Sequence[Callable[[], Tensor]], *, stops: dict[str, nn.Module]) -> None:
        self._passed: set[tuple[int, str]] = set()
        self._handles = [
            module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, module in stops.items()
        ]
        self._passes = [_Pass(call) for call in calls]
        self._by_thread = {id(one.thread): (number, one) for number, one in enumerate(self._passes)}

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._passes:
            one.abandon()
        for handle in self._handles:
            handle.remove()

    def advance(self, index: int, name: str) -> Tensor:
        """Run pass `index` to the module `name`; returns the module's input."""
        one = self._passes[index]
        one.resume()
        if one.at != name or one.input is None:
            reached = one.at or "the end"
            raise RuntimeError(
                f"batch {index} went to {reached} where batch 0 went to {name}: the layers that a batch passes "
                "must not depend on its content"
            )
        return one.input

    def finish(self) -> list[Tensor]:
        """Run every pass to its end; returns their results."""
        results = []
        for index, one in enumerate(self._passes):
            one.resume()
            if one.result is None:
                raise RuntimeError(f"batch {index} stopped at {one.at} once more")
            results.append(one.result)
            one.result = None
        return results

    def __len__(self) -> int:
        return len(self._passes)

    def _hook(self, name: str) -> Callable[..., None]:
        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found = self._by_thread.get(id(threading.current_thread()))
            if found is None:
                return
            number, one = found
            if (number, name) not in self._passed:
                self._passed.add((number, name))
                one.stop_at(name, args[0] if args else next(iter(kwargs.values())))

        return stop
