"""An experiment's folder: its plan, the trainings that are done, and those that wait."""

import os
import uuid
from pathlib import Path

from analysis.metrics import SCHEMA_VERSION, save_metrics
from analysis.values import in_order, trainings_of
from analysis.warnings import find_warnings, split_blocks
from experiment import files
from experiment.identity import PLANNED, differences, identity_of, plain_config
from experiment.plan import declare, make_plan
from machine import ranks
from machine.command import SUITE_VERSION, UserError, counted, say
from machine.describe import describe_code, describe_environment
from machine.files import file_sha256, json_sha256, utc_now, write_json, write_text
from training.arms import arm_density
from training.batches import losses_of_counts, planned_steps, validation_rows
from training.config_file import CONFIG_NAME, to_toml
from training.memory import MEMORY_STEPS
from training.operators import attention_used
from training.tokens import find_tokenizer
from training.trainer import model_of, parameter_counts
from training.weights import WEIGHTS_FOLDER, save_weights, save_window_weights

REMEDY = "choose another --output-dir, or --restart, which renames the old folder"


def describe_experiment(config, dataset, device):
    """All metadata that is known before the first training; ``plan`` has every random choice."""
    environment, code = describe_environment(device), describe_code()
    identity = identity_of(config, dataset, environment, code)
    values = plain_config(config)
    used = {
        arm: attention_used(config, arm, device) | {"density": arm_density(values, arm)}
        for arm in config.arms
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment_id": uuid.uuid4().hex,
        "created_at": utc_now(),
        "suite_version": SUITE_VERSION,
        "config": values,
        "config_sha256": json_sha256(identity["config"]),
        "identity": identity,
        "plan": make_plan(config) | declare(config),
        "code": code,
        "environment": environment,
        "data": {
            "path": dataset.path,
            "train_rows": len(dataset.train),
            "val_rows": len(dataset.held_out),
            "val_rows_used": len(validation_rows(config, len(dataset.held_out))),
            "vocab_size": dataset.vocab_size,
        },
        "pattern": {
            "density": arm_density(values, "window"),
            "evaluation": used["window"]["evaluation"] if "window" in used else None,
        },
        "attention": used,
        "parameters": parameter_counts(config, dataset.vocab_size),
        "steps": planned_steps(config, len(dataset.train)),
        "memory_measure": memory_measure(config, device),
        "processes": [],
        "mixed": [],
    }


def memory_measure(config, device):
    """What the metrics of memory measure, in words."""
    several = config.world_size > 1
    if device.type == "cuda":
        whose = " of the rank with the largest" if several else ""
        when = "with the warm-up" if config.records_graphs else "reset after the warm-up"
        return f"torch.cuda.max_memory_allocated{whose}, {when}"
    if config.shard_sequence > 1:
        return "not measured on a CPU where sequences are cut"
    trained = f"{MEMORY_STEPS} eager steps" + " on one rank's share of the batch" * several
    return f"resident growth of a fresh process that trains {trained}"


class StoredExperiment:
    """An experiment's folder: its plan, the trainings that are done, and those that wait.

    The constructor only reads; to change the folder, make it inside ``files.locked``.  A folder
    without a plan gets one.  An experiment that has one goes on if configuration, data, code and
    device are the same; otherwise UserError lists what differs.  allow_mixed: go on all the same,
    and mark the results.  anew: as if the folder were empty.
    """

    def __init__(self, config, dataset, device, allow_mixed=False, anew=False):
        self.folder, self.config = Path(config.output_dir), config
        self.now = describe_experiment(config, dataset, device)
        before = None if anew else files.read_plan(self.folder, self.now)
        if before is None:
            if not anew:
                self._refuse_foreign()
            self.metadata, self.changed = self.now, []
            self.metrics, self.unusable = {arm: [] for arm in config.arms}, []
            used = validation_rows(config, len(dataset.held_out))
            # counted once, for it reads all the data
            self.metadata["data"] |= losses_of_counts(dataset, used)
            return
        self.metadata = before
        self.metrics, self.unusable = files.read_trainings(self.folder, before)
        self.changed = differences(before["identity"], self.now["identity"])
        if self.changed:
            self._mix(allow_mixed)
        self._keep_blocks_whole()

    def _refuse_foreign(self):
        names = [*files.RESULTS, files.RUNS_NAME, files.ASIDE_NAME, WEIGHTS_FOLDER]
        names = [name for name in names if os.path.lexists(self.folder / name)]
        if names:
            raise UserError(
                f"{self.folder} holds results without a plan.json ({', '.join(names)}), of an "
                f"older version or another program: {REMEDY}"
            )

    def _mix(self, allow_mixed):
        """Refuse to go on with what differs, or warn of it."""
        listed = "\n  ".join(self.changed)
        about = f"{self.folder} holds another experiment, {self.progress()}; what differs:\n"
        about += f"  {listed}\n"
        planned = tuple(f"config.{name}:" for name in PLANNED)
        if any(line.startswith(planned) for line in self.changed):
            raise UserError(about + REMEDY)
        if not allow_mixed:
            raise UserError(f"{about}{REMEDY}, or --allow-mixed, which goes on and marks them")
        say(f"warning: --allow-mixed goes on although this differs:\n  {listed}")

    def _keep_blocks_whole(self):
        """A block that another GPU began is trained anew: its arms are compared pair by pair."""
        here = _gpu_of(self.now["environment"])
        gpus = {p["process"]: _gpu_of(p["environment"]) for p in self.metadata["processes"]}
        waiting = {place["block"] for _, place in self.waiting()}
        for arm, training in trainings_of(self.metrics):
            block = training["block"]
            if block in waiting and gpus.get(training["process"]) != here:
                path = files.training_path(self.folder, arm, block)
                self.unusable.append((path, f"{path}: block {block + 1} was begun on another GPU"))
                self.metrics[arm] = [one for one in self.metrics[arm] if one is not training]

    def progress(self):
        """How much is done, in words."""
        return f"{len(in_order(self.metrics))} of {counted(len(self.trainings()), 'training')} done"

    def trainings(self):
        """(arm, place) of every planned training, in the plan's order."""
        planned = []
        for block, order in enumerate(self.metadata["plan"]["orders"]):
            for position, arm in enumerate(order):
                place = {"block": block, "position": position}
                planned.append((arm, place | {"order": ",".join(order)}))
        return planned

    def waiting(self):
        """The planned trainings that are not done."""
        done = {(arm, training["block"]) for arm, training in trainings_of(self.metrics)}
        return [
            (arm, place) for arm, place in self.trainings() if (arm, place["block"]) not in done
        ]

    def begin(self, argv=None):
        """Note this process in the plan; from now on the folder holds the experiment.

        argv: the command line, for the record.
        """
        self.process = uuid.uuid4().hex
        about = {"process": self.process, "started_at": self.now["created_at"], "argv": argv}
        about |= {key: self.now[key] for key in ("config", "code", "environment", "attention")}
        self.metadata["processes"].append(about | {"differs": self.changed})
        mixed = self.metadata["mixed"]
        mixed += [line for line in self.changed if line not in mixed]
        if not ranks.is_first():
            return
        for path, reason in self.unusable:
            moved = files.set_aside(self.folder, path)
            say(f"warning: {reason}; it is now {moved}, and its training will be repeated")
        write_json(self.folder / files.PLAN_NAME, self.metadata)
        write_text(self.folder / CONFIG_NAME, to_toml(self.metadata["config"]))

    def finished(self, arm, training, model):
        """Save a finished training, and the results that follow from all of them.

        model: None where the training failed; in the first block its weights are saved too.
        """
        if not ranks.is_first():
            return
        if training["block"] == 0 and model is not None:
            self._save_weights(arm, training["seed"], model)
        index = 1 + max((one["index"] for _, one in in_order(self.metrics)), default=-1)
        training = training | {"index": index, "process": self.process}
        training = files.write_training(self.folder, self.metadata["experiment_id"], arm, training)
        trainings = [*self.metrics[arm], training]
        self.metrics[arm] = sorted(trainings, key=lambda one: one["block"])
        self.save_results()

    def _save_weights(self, arm, seed, model):
        """A model's weights, with what rebuilds it and decodes."""
        data = self.now["data"]
        _, arguments = model_of(self.config, arm, data["vocab_size"])
        tokenizer = find_tokenizer(data["path"])
        found, known = file_sha256(tokenizer), self.now["identity"]["tokenizer"]
        if found != known:
            say(f"{tokenizer}: changed since the start, so the weights are kept without it")
        kept = tokenizer if found and found == known else None
        about = {"arm": arm, "suite_version": SUITE_VERSION}
        about |= {"seed": seed, "config": self.now["config"]}
        save_weights(model, arguments, about, kept, self.folder)
        if arm == "window":
            save_window_weights(model, arguments, kept, self.folder)

    def save_results(self):
        """Write ``experiment_results`` anew from the trainings; returns what is in it."""
        content = self.metadata | {"status": "partial" if self.waiting() else "complete"}
        content["split_blocks"] = split_blocks(self.metrics)
        aside = (self.folder / files.ASIDE_NAME).glob("*.npz")
        content["set_aside"] = sorted(path.name for path in aside)
        content["warnings"] = find_warnings(self.metrics, content)
        save_metrics(self.metrics, content, self.folder)
        return self.metrics, content


def _gpu_of(environment):
    return (environment.get("gpu") or {}).get("uuid")
