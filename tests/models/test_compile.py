"""The loop body is one graph for a compiler: a graph cut at every norm would run as if it were not compiled.

In a process of its own, since the types that these tests check at every call cannot be traced.
"""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, torch
from models import PRESETS, LoopedLM

torch.manual_seed(0)
model = LoopedLM(PRESETS["tiny"]).double().train()
h = torch.randn(2, 8, PRESETS["tiny"].d_model, dtype=torch.float64, requires_grad=True)
results = []
for step in (model.step, torch.compile(model.step, backend="aot_eager", fullgraph=True)):
    out = step(h)
    results.append((out, *torch.autograd.grad(out.pow(3).sum(), [h, *model.sublayers.parameters()])))
worst = max(((a - b).norm() / a.norm()).item() for a, b in zip(*results, strict=True))
norm, x = model.sublayers[0].norm.float(), torch.randn(8, PRESETS["tiny"].d_model)
with torch.autocast("cpu", dtype=torch.bfloat16):
    cast = torch.compile(norm, backend="eager")(x)
autocast = ((cast - norm(x)).norm() / norm(x).norm()).item()
print(json.dumps({"worst": worst, "autocast": autocast}))
"""


def test_the_loop_body_is_traced_whole_and_computes_the_same():
    # fullgraph=True: what cannot be traced into the one graph is an error.
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["worst"] < 1e-12
    assert found["autocast"] < 1e-6  # the norms stay in float32
