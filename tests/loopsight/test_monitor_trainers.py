"""The callbacks in real trainings of a tiny model, on the CPU, with gradient accumulation and evaluation."""

import importlib
import sys
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from loopsight.monitor import LoopMonitor

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),  # Lightning's own
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),  # Lightning, on more than two cores
    pytest.mark.filterwarnings("ignore:GPU available but not used"),  # Lightning
]

VOCAB, D, LOOPS = 13, 8, 3
STEPS, ACCUMULATED, BATCH = 5, 2, 4


class Rows(Dataset):
    def __init__(self) -> None:
        self.rows = torch.randint(VOCAB, (STEPS * ACCUMULATED * BATCH, 6), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


class Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.block = nn.Embedding(VOCAB, D), nn.Linear(D, D)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        h = self.table(input_ids[:, :-1])
        for _ in range(LOOPS):
            h = self.block(h)
        logits = F.rms_norm(h, (D,)) @ self.table.weight.T
        loss = F.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


def by_hand(every: int) -> list[dict]:
    """The same training written out, the monitor told of every step: what both callbacks must see."""
    model, records = Looped(), []
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = list(DataLoader(Rows(), batch_size=BATCH))
    with LoopMonitor(model, "block", optimiser=optimiser, sinks=[records.append], every=every):
        for step in range(STEPS):
            for batch in batches[step * ACCUMULATED : (step + 1) * ACCUMULATED]:
                (model(**batch)["loss"] / ACCUMULATED).backward()
            optimiser.step()
            optimiser.zero_grad()
    return records


GROWS = pytest.mark.filterwarnings("ignore::loopsight.monitor.LoopMonitorWarning")  # a blind model, and it does


def assert_alike(records: list[dict], expected: list[dict]) -> None:
    records, expected = ([r for r in each if r["event"] == "sample"] for each in (records, expected))
    assert len(records) >= 3
    assert [record["step"] for record in records] == [record["step"] for record in expected]
    for record, other in zip(records, expected, strict=True):
        assert record["loops"] == other["loops"] == (0, 1, 2, 3)
        for key in ("mean_l2_norm", "total_radial_gradient_fraction"):
            assert record[key] == pytest.approx(other[key], rel=1e-4, abs=1e-6)


def assert_detached(model: nn.Module) -> None:
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@GROWS
def test_the_callback_in_a_transformers_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from loopsight.monitoring.huggingface import LoopMonitorCallback

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    records: list[dict] = []
    model = Looped()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATED,
        eval_strategy="steps",
        eval_steps=1,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    callback = LoopMonitorCallback("block", sinks=[records.append], every=2)
    InOrder(model=model, args=arguments, train_dataset=Rows(), eval_dataset=Rows(), callbacks=[callback]).train()
    assert_alike(records, by_hand(every=2))
    assert_detached(model)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture
def told():
    """Arguments of the callback's events, in a run of which seven steps are done."""
    transformers = pytest.importorskip("transformers")

    def arguments(rank_zero: bool) -> list[object]:
        state = transformers.TrainerState(global_step=7, is_world_process_zero=rank_zero)
        return [Mock(spec=transformers.TrainingArguments), state, transformers.TrainerControl()]

    return arguments


def test_the_trainers_callback_counts_on_from_a_checkpoint_and_attaches_once(told):
    from loopsight.monitoring.huggingface import LoopMonitorCallback

    model, callback = Looped(), LoopMonitorCallback("block", every=3)
    for _ in range(2):
        callback.on_train_begin(*told(rank_zero=True), model=model)
        assert callback.monitor.steps_done == 7 and callback.monitor.every == 3 and hooks(model) == 3
    callback.on_train_end(*told(rank_zero=True))
    assert_detached(model)


def test_the_trainers_callback_monitors_rank_zero_only(told):
    from loopsight.monitoring.huggingface import LoopMonitorCallback

    model, callback = Looped(), LoopMonitorCallback("block")
    callback.on_train_begin(*told(rank_zero=False), model=model)
    callback.on_step_end(*told(rank_zero=False))
    callback.on_train_end(*told(rank_zero=False))
    assert callback.monitor is None
    assert_detached(model)


@pytest.fixture
def lightning_module():
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, failing: bool = False) -> None:
            super().__init__()
            self.model, self.failing = Looped(), failing

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            if self.failing and index == 3:
                raise RuntimeError("out of memory")
            return self.model(**batch)["loss"]

        def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
            self.model(**batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module


def fit(module, callback, tmp_path) -> None:
    import lightning

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=STEPS,
        accumulate_grad_batches=ACCUMULATED,
        val_check_interval=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        default_root_dir=str(tmp_path),
    )
    trainer.fit(module, DataLoader(Rows(), batch_size=BATCH), DataLoader(Rows(), batch_size=BATCH))


@GROWS
@pytest.mark.parametrize("named", [None, "model"])
def test_the_callback_in_a_lightning_trainer(tmp_path, lightning_module, named):
    from loopsight.monitoring.lightning import LoopMonitorCallback

    records: list[dict] = []
    module = lightning_module()
    fit(module, LoopMonitorCallback("model.block", model=named, sinks=[records.append], every=2), tmp_path)
    assert_alike(records, by_hand(every=2))
    assert_detached(module)


def test_lightnings_callback_counts_on_from_a_checkpoint_on_rank_zero_only(lightning_module):
    import lightning

    from loopsight.monitoring.lightning import LoopMonitorCallback

    for rank_zero in (True, False):
        module, callback = lightning_module(), LoopMonitorCallback("model.block", model="model", every=3)
        trainer = Mock(spec=lightning.Trainer, global_step=7, is_global_zero=rank_zero)
        callback.on_train_start(trainer, module)
        assert hooks(module) == (3 if rank_zero else 0)
        assert (callback.monitor.steps_done, callback.monitor.every) == (7, 3) if rank_zero else not callback.monitor
        callback.on_train_end(trainer, module)
        assert_detached(module)


def test_lightnings_callback_attaches_once_where_a_training_began_twice(lightning_module):
    import lightning

    from loopsight.monitoring.lightning import LoopMonitorCallback

    module, callback = lightning_module(), LoopMonitorCallback("model.block", model="model")
    trainer = Mock(spec=lightning.Trainer, global_step=0, is_global_zero=True)
    for _ in range(2):
        callback.on_train_start(trainer, module)
        assert hooks(module) == 3
    callback.on_train_end(trainer, module)
    assert_detached(module)


def test_lightnings_callback_detaches_when_training_raises(tmp_path, lightning_module):
    from loopsight.monitoring.lightning import LoopMonitorCallback

    module, callback = lightning_module(failing=True), LoopMonitorCallback("model.block")
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(module, callback, tmp_path)
    assert callback.monitor is not None
    assert_detached(module)


@pytest.mark.parametrize(
    ("file", "package", "extra"), [("huggingface", "transformers", "hf"), ("lightning", "lightning", "lightning")]
)
def test_a_missing_package_says_how_to_install_it(monkeypatch, file, package, extra):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"loopsight.monitoring.{file}", raising=False)
    with pytest.raises(ImportError, match=rf'pip install "loopsight\[{extra}\]"'):
        importlib.import_module(f"loopsight.monitoring.{file}")
