"""Non-negative matrix factorisation by multiplicative updates: the Hamburger of SegNeXt's decoder.

"Is Attention Better Than Matrix Decomposition?" (ICLR 2021), sec. 3; the meaning is MMSegmentation's `NMF2D` in
`ham_head.py@v1.2.2` (Apache-2.0): softmax start of the coefficients, `steps` updates of coefficients then bases, one
last update of the coefficients, product. Deviations: the bases to start from are an argument (upstream draws them at
each call), and the gradient can be taken through all steps ("full", as upstream's PyTorch code does) or through the
last update of the coefficients only ("one_step", as the paper and the first Jittor code do; the bases then get a zero
gradient).
"""

import jittor as jt

from jseg.ops.common import as_parameters, check, check_shape, device_op, like, pick

__all__ = ["nmf"]


def nmf(x, bases, *, steps: int, inv_t: float = 1.0, eps: float = 1e-6, grad: str = "full", impl: str = "auto"):
    """Reconstruct x from a few learned bases.

    Args:
        x: values >= 0 (the caller's ReLU sees to that), float32.
        bases: values >= 0 to start from; columns usually of length 1.
        steps: updates of (coefficients, bases), >= 0.
        inv_t: factor inside the softmax that starts the coefficients.
        eps: added to each divisor, > 0.
        grad: "full" or "one_step".
        impl: see `jseg.ops.common`.
    Shape:
        x (N, D, L); bases (N, D, R) -> (N, D, L)
    Raises:
        KernelError: shapes that do not fit, steps < 0, an unknown grad or impl.
    """
    check("nmf", len(x.shape) == 3 and min(x.shape) >= 1,
          f"x is {tuple(x.shape)}, expected (N, D, L) with no empty side")
    check_shape("nmf", "bases", bases, (x.shape[0], x.shape[1], None))
    check("nmf", isinstance(steps, int) and steps >= 0, f"steps is {steps!r}, expected an integer >= 0")
    check("nmf", grad in ("full", "one_step"), f"grad is {grad!r}, accepted are 'full' and 'one_step'")
    check("nmf", eps > 0, f"eps is {eps!r}, expected a number > 0")
    impl = pick(impl, "nmf", x, bases)
    if impl == "jittor":
        return _composed(x, bases, steps, inv_t, eps, grad)
    return _Nmf.apply(x, *as_parameters(bases), steps, inv_t, eps, grad, device_op(impl))


def _composed(x, bases, steps, inv_t, eps, grad):
    if grad == "one_step":
        with jt.no_grad():
            bases, coef = _iterate(x, bases, steps, inv_t, eps)
        bases, coef = bases.stop_grad(), coef.stop_grad()
    else:
        bases, coef = _iterate(x, bases, steps, inv_t, eps)
    coef = _update_coef(x, bases, coef, eps)
    return jt.bmm(bases, coef.transpose(0, 2, 1))  # (N, D, L)


def _iterate(x, bases, steps, inv_t, eps):
    coef = jt.nn.softmax(inv_t * jt.bmm(x.transpose(0, 2, 1), bases), dim=-1)  # (N, L, R)
    for _ in range(steps):
        coef = _update_coef(x, bases, coef, eps)
        gram = jt.bmm(coef.transpose(0, 2, 1), coef)  # (N, R, R)
        bases = bases * jt.bmm(x, coef) / (jt.bmm(bases, gram) + eps)  # (N, D, R)
    return bases, coef


def _update_coef(x, bases, coef, eps):
    gram = jt.bmm(bases.transpose(0, 2, 1), bases)  # (N, R, R)
    return coef * jt.bmm(x.transpose(0, 2, 1), bases) / (jt.bmm(coef, gram) + eps)  # (N, L, R)


class _Nmf(jt.Function):
    def execute(self, x, bases, steps, inv_t, eps, grad, run):
        save = not jt.flags.no_grad
        (n, d, length), rank = x.shape, bases.shape[2]
        kept, padded = (steps if grad == "full" else 0), -(-rank // 16) * 16
        # `Plan::saved_size` in cpu.cc; CUDA needs less
        size = n * padded * ((kept + 1) * length + (2 * kept + 1) * d + kept * padded)
        self.scalars = [n, d, length, rank, steps, inv_t, eps, grad == "one_step", save]
        self.run, self.saved, outputs = run, (x, bases.shape), [(x.shape, x.dtype)] + [((size,), "float32")] * save
        y, *self.state = run("jseg_nmf_forward", [x, bases], outputs, self.scalars)
        return y

    def grad(self, dy):
        x, bases_shape = self.saved
        outputs = [(x.shape, x.dtype), (bases_shape, "float32")]
        dx, dbases = self.run("jseg_nmf_backward", [x, self.state[0], like(dy, x)], outputs, self.scalars)
        return dx, dbases, None, None, None, None, None
