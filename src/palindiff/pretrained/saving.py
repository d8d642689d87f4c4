"""Saving a checkpoint folder with its model card, or a trained LoRA; uploading; exporting stock Stable Diffusion.

Not here: what a card says (`model_card.py`), loading (`inference/pipeline.py`).
"""

import contextlib
import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from torch import nn

from palindiff.models.lora import lora_settings, lora_weights, merged, trains_lora
from palindiff.models.strict_model import check_finite
from palindiff.pretrained.layout import INDEX_NAME, OUR_PARTS
from palindiff.pretrained.model_card import CARD_NAME, CardFacts, card_text, stable_diffusion_card
from palindiff.pretrained.vocabulary import VOCABULARY_FILE, Vocabulary

_DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


class HubMixin(StableDiffusionPipeline):
    """A Stable Diffusion pipeline that keeps card and vocabulary of its folder, and saves no path of this machine."""

    model_card: str | None = None  # text of README.md, written wherever the pipeline is saved
    vocabulary: Vocabulary | None = None  # what `palindiff classify` answers without labels; written in the same way

    def with_merged_lora(self) -> Self:
        """Make the pipeline whose weights contain the updates of a LoRA in training; this one if there are none."""
        trained = {name: part for name, part in self.components.items() if _is_trained_by_lora(part)}
        if not trained:
            return self
        whole = copy.copy(self)
        whole.register_modules(**{name: merged(part) for name, part in trained.items()})
        return whole

    def to_stable_diffusion(self) -> StableDiffusionPipeline:
        """Make the stock pipeline of the same parts; nothing is copied, and LoRAs in a part stay there."""
        parts = {name: part for name, part in self.components.items() if name not in OUR_PARTS}
        return StableDiffusionPipeline(**parts, requires_safety_checker=self.config.requires_safety_checker)

    def to_json_string(self) -> str:
        """Write the index under the stock pipeline's name, so that diffusers' generic loaders take the folder too."""
        index = json.loads(super().to_json_string()) | {"_class_name": StableDiffusionPipeline.__name__}
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Save as diffusers does, with the model card, and without the paths that the parts were loaded from.

        Raises: ValueError if a LoRA is loaded, which diffusers would save into a folder that nothing loads.
        """
        _check_bare(self.components)
        folder, use_flashpack = Path(save_directory), options.pop("use_flashpack", False)
        super().save_pretrained(folder, safe_serialization, variant, max_shard_size, use_flashpack=use_flashpack)
        make_portable(folder)
        if self.model_card is not None:
            (folder / CARD_NAME).write_text(self.model_card, encoding="utf-8")
        if self.vocabulary is not None:
            self.vocabulary.write(folder)
        if push_to_hub:
            push_folder(folder, options.pop("repo_id", folder.name), **options)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> str:
        """Upload the whole checkpoint in one commit, with its model card.

        Returns: the address of the commit.
        Raises: ValueError as `save_pretrained`; HfHubHTTPError, an OSError, if the Hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            return push_folder(Path(folder), repo_id, commit_message, private, token, create_pr, subfolder)

    @classmethod
    def lora_state_dict(cls, pretrained_model_name_or_path_or_dict: Any, **options: Any) -> Any:
        """Read a LoRA as diffusers does, but from safetensors alone: no pickle is opened.

        Raises: ValueError if `weight_name` names another kind of file; OSError if there is none of this kind.
        """
        name = options.get("weight_name")
        if name is not None and not name.endswith(".safetensors"):
            raise ValueError(
                f"`weight_name` is {name} in `load_lora_weights`. Expected a .safetensors file: pickles may run code "
                "when opened and are never read. Ask for the LoRA as safetensors."
            )
        options["use_safetensors"] = True
        return super().lora_state_dict(pretrained_model_name_or_path_or_dict, **options)

    @classmethod
    def download(cls, pretrained_model_name: str, **options: Any) -> str:
        """Download what diffusers does and, where there are any, the model card and the vocabulary."""
        folder = super().download(pretrained_model_name, **options)
        given = {name: options[name] for name in _DOWNLOAD_OPTIONS if options.get(name) is not None}
        for name in (CARD_NAME, VOCABULARY_FILE):
            with contextlib.suppress(OSError):  # no such file, or no connection: the weights are there
                hf_hub_download(pretrained_model_name, name, **given)
        return str(folder)


def export_stable_diffusion(
    pipeline: HubMixin, folder: Path, variant: str | None = None, max_shard_size: str | None = None
) -> None:
    """Write the stock Stable Diffusion folder of a pipeline, with its card, if it has one."""
    _check_bare(pipeline.components)
    check_finite(pipeline.components, "Export in another type (bf16 holds larger numbers than fp16), or train again.")
    pipeline.to_stable_diffusion().save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
    make_portable(folder)
    if pipeline.model_card is not None:
        (folder / CARD_NAME).write_text(stable_diffusion_card(pipeline.model_card), encoding="utf-8")


def save_lora(folder: Path, unet: UNet2DConditionModel, text_encoder: nn.Module) -> None:
    """Write the updates in training of a U-Net, and those of a text encoder that has some, for `load_lora_weights`."""
    of_text = text_encoder if trains_lora(text_encoder) else None
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=lora_weights(unet),
        text_encoder_lora_layers=None if of_text is None else lora_weights(of_text),
        unet_lora_adapter_metadata=lora_settings(unet),
        text_encoder_lora_adapter_metadata=None if of_text is None else lora_settings(of_text),
    )


def make_portable(folder: Path) -> None:
    """Rewrite the index and the config.json of each part so that they can be loaded elsewhere.

    The path that a part was loaded from is removed: it means nothing on another machine. A CLIP image processor is
    called as every version of transformers does: without torchvision, transformers 5 calls it by a name of its own,
    which others do not know.
    """
    for path in (*folder.glob("config.json"), *folder.glob("*/config.json"), *folder.glob(INDEX_NAME)):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        if config.get("feature_extractor") == ["transformers", "CLIPImageProcessorPil"]:
            config["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def files_to_push(folder: Path) -> Sequence[Path]:
    """List what a push uploads: every file below the folder, but hidden ones."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def push_folder(
    folder: Path,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> str:
    """Upload a checkpoint folder in one commit; the repository is made if there is none.

    A folder without a card leaves the repository's own, or gives it one that calls everything unknown.

    Returns: the address of the commit.
    Raises: HfHubHTTPError, an OSError, if the Hub refuses.
    """
    hub = HfApi(token=token)
    repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
    inside = f"{subfolder}/" if subfolder else ""
    files = {f"{inside}{path.relative_to(folder).as_posix()}": path for path in files_to_push(folder)}
    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    card = f"{inside}{CARD_NAME}"
    if card not in files and not hub.file_exists(repo_id, card):
        operations.append(CommitOperationAdd(card, card_text(CardFacts(name=repo_id)).encode()))
    message = commit_message or "Upload palindiff checkpoint"
    return hub.create_commit(repo_id, operations, commit_message=message, create_pr=create_pr)


def _is_trained_by_lora(part: Any) -> bool:
    return isinstance(part, nn.Module) and trains_lora(part)


def _check_bare(parts: dict[str, Any]) -> None:
    adapted = [name for name, part in parts.items() if isinstance(part, nn.Module) and hasattr(part, "peft_config")]
    if adapted:
        raise ValueError(
            f"A LoRA is loaded into `{'` and `'.join(adapted)}`. Expected bare weights: saved like this, nothing "
            "loads them again. Call `unload_lora_weights()` first, after `fuse_lora()` to keep what it changes."
        )
