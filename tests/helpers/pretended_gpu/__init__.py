"""A CUDA device that is not there: tensors that say `cuda:0`, are computed on the processor, and keep count.

`with pretend_cuda() as gpu:` makes torch believe in one GPU. What a real one would refuse is refused: operands on two
devices, reading its memory as NumPy, waiting while a graph is recorded. What it would do slowly is recorded with the
line of the project that asked for it: waits (`.item()`, `.cpu()`, boolean indices), copies from memory that is not
pinned, index tensors on the wrong side. Results that nobody waited for are not there yet. See `pretend.py`.

It shows neither speed nor races between streams nor faults of kernels, and compiles nothing: `torch.compile` has to be
kept out. For those there are the tests marked `gpu`.
"""
