"""What factored models can do where the package is installed, beyond what travels with their checkpoints."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_factored import MODEL_TYPE_PREFIX
from .configuration_timm import MODEL_TYPE
from .modeling_factored import FactoredModelMixin
from .runtime.outputs import is_staging, reserved


class PackageModelMixin(FactoredModelMixin):
    """Methods of every factored model where the package is installed: saving, publishing, and `to_dense`.

    What lies beside the checkpoint that a model is loaded from is saved with it again, wherever that is.
    """

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        if config.model_type == MODEL_TYPE_PREFIX + MODEL_TYPE:
            from .model.timm import check_timm

            check_timm()  # transformers would name one package after the other
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the model's `companions` are the files beside the checkpoint.

        Unless it is trained, its weights are stored again in the type that they are stored in there.
        """
        from .model.stored import stored_dtype
        from .publish.saved import companions_at

        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        if pretrained_model_name_or_path is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info`
            name, subfolder = str(pretrained_model_name_or_path), kwargs.get("subfolder")
            name = os.path.join(name, subfolder) if subfolder else name
            model.stored_dtype = stored_dtype(name)
            model.companions = companions_at(name, getattr(model.config, "_commit_hash", None), kwargs.get("token"))
        return loaded

    def to_dense(self) -> PreTrainedModel:
        """The dense model that computes the same; see `hf_vitcompress.to_dense`."""
        from .model.dense import to_dense

        return to_dense(self)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def replacing(self, target: str) -> Iterator[str]:
        """As without the package; an exchange of files that is interrupted is completed by whoever comes next."""
        if is_staging(Path(target)):
            yield target
            return
        with reserved(target, "renew") as output, output.replaced() as staging:
            yield str(staging)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """As in transformers, with a model card; see `publish.push.push_model`.

        Text that a person added to the card on the Hub is kept.
        """
        from .publish.push import push_model

        return push_model(self, repo_id, **kwargs)  # type: ignore[arg-type]

    def publish(self, folder: str | os.PathLike, repo_id: str, **settings: Any) -> None:
        """Publish a folder that this model was saved to; see `publish.push.push_folder`."""
        from .publish.push import push_folder

        push_folder(str(folder), repo_id, **settings)
