"""Where models come from: the bundled packages, and the MODEL argument."""

from __future__ import annotations

from pathlib import Path

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from tampu.core.errors import CheckpointError
from tampu.model import bundled
from tampu.model.bundled import bundled_embedding_path, bundled_model_path
from tampu.model.hub import resolve_model


class TestBundled:
    @pytest.mark.bundled
    def test_both_are_found(self) -> None:
        model, embedding = bundled_model_path(), bundled_embedding_path()
        assert model is not None
        assert model.suffix == ".gguf"
        assert embedding is not None
        assert (embedding / "config.json").is_file()

    def test_none_without_the_packages(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(bundled, "MODEL_PACKAGE", "no_such_package_here")
        monkeypatch.setattr(bundled, "EMBEDDING_PACKAGE", "empty_package_here")
        (tmp_path / "empty_package_here").mkdir()
        (tmp_path / "empty_package_here" / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert bundled_model_path() is None
        assert bundled_embedding_path() is None

    def test_package_is_not_imported(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        package = tmp_path / "weights_only_here"
        package.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
        (package / "model.gguf").write_bytes(b"GGUF")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(bundled, "MODEL_PACKAGE", "weights_only_here")
        assert bundled_model_path() == package / "model.gguf"


class Hub:
    """Stands in for the hub: repositories are dictionaries of file name and content."""

    def __init__(self, root: Path, repositories: dict[str, list[str]], error: Exception | None = None) -> None:
        self.root, self.repositories, self.error = root, repositories, error
        self.pulled: list[str] = []
        self.is_asked_offline: list[bool] = []

    def _folder(self, repository: str) -> Path:
        if self.error is not None:
            raise self.error
        folder = self.root / repository.replace("/", "--")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def snapshot_download(self, repository: str, *, allow_patterns: list[str], cache_dir: Path | None) -> str:
        folder = self._folder(repository)
        for name in self.repositories[repository]:
            if any(Path(name).match(pattern) for pattern in allow_patterns):
                self.hf_hub_download(repository, name, cache_dir=cache_dir)
        return str(folder)

    def get_hf_file_metadata(self, url: str) -> None:
        if self.error is not None:
            raise self.error

    def hf_hub_download(
        self, repository: str, file: str, *, cache_dir: Path | None, local_files_only: bool = False
    ) -> str:
        self.is_asked_offline.append(local_files_only)
        path = self._folder(repository) / file
        path.write_bytes(b"")
        self.pulled.append(file)
        return str(path)

    def list_repo_files(self, repository: str) -> list[str]:
        return self.repositories[repository]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    folder = ["config.json", "tokenizer.json", "model-00001-of-00001.safetensors", "pytorch_model.bin", "run.py"]
    fake = Hub(
        tmp_path / "cache",
        {"org/folder": folder, "org/one-GGUF": ["a.gguf", "x.md"], "org/two": ["a.gguf", "b.gguf"], "org/none": ["x"]},
    )
    for name in ("snapshot_download", "hf_hub_download", "list_repo_files", "get_hf_file_metadata"):
        monkeypatch.setattr(huggingface_hub, name, getattr(fake, name))
    return fake


class TestResolve:
    def test_existing_path_wins(self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "org" / "folder").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert resolve_model("org/folder") == Path("org/folder")
        assert hub.pulled == []

    def test_folder_is_pulled_without_pickles_and_code(self, hub: Hub) -> None:
        path = resolve_model("org/folder")
        assert sorted(p.name for p in path.iterdir()) == [
            "config.json",
            "model-00001-of-00001.safetensors",
            "tokenizer.json",
        ]

    def test_file_of_a_repository(self, hub: Hub) -> None:
        assert resolve_model("org/two:b.gguf").name == "b.gguf"
        assert hub.pulled == ["b.gguf"]

    def test_only_gguf_of_a_repository(self, hub: Hub) -> None:
        assert resolve_model("org/one-GGUF").name == "a.gguf"

    @pytest.mark.parametrize(
        ("model", "reason"),
        [
            ("org/two", r"org/two:FILE \(a.gguf, b.gguf\)"),
            ("org/none", "neither safetensors"),
            ("org/two:weights.bin", "not a GGUF file"),
            ("org/two:../../x.gguf", "not a GGUF file"),
            ("missing.gguf", "not an existing file"),
            ("models/missing.gguf", "not an existing file"),
            ("./org/folder", "not an existing file"),
            ("a/b/c", "not an existing file"),
            ("", "not an existing file"),
        ],
    )
    def test_refusals_name_the_way_out(self, hub: Hub, model: str, reason: str) -> None:
        with pytest.raises(CheckpointError, match=reason):
            resolve_model(model)

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (errors.LocalEntryNotFoundError("offline"), "cannot be reached"),
            (errors.OfflineModeIsEnabled("offline"), "cannot be reached"),
            (errors.HFValidationError("bad name"), "not a valid hub repository"),
            (TimeoutError("timed out\nmore"), r"TimeoutError: timed out\)"),
            (RuntimeError(), "RuntimeError: no details"),
        ],
    )
    def test_every_failure_is_one_sentence(self, hub: Hub, error: Exception, reason: str) -> None:
        hub.error = error
        for model in ("org/folder", "org/two:a.gguf"):
            with pytest.raises(CheckpointError, match=reason) as caught:
                resolve_model(model)
            assert "\n" not in str(caught.value)

    def test_a_hub_that_cannot_be_reached_is_tried_once(self, hub: Hub) -> None:
        resolve_model("org/two:a.gguf")
        hub.error = ConnectionError("[Errno -2] Name or service not known")
        with pytest.raises(CheckpointError):
            resolve_model("org/two:a.gguf")
        # A hub that answers with an error is asked as usual: its reason is worth more than "offline".
        hub.error = errors.HfHubHTTPError(
            "503", response=httpx.Response(503, request=httpx.Request("HEAD", "http://x"))
        )
        with pytest.raises(CheckpointError):
            resolve_model("org/two:a.gguf")
        assert hub.is_asked_offline == [False, True, False]

    def test_offline_with_a_pulled_gguf(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        resolve_model("org/one-GGUF")

        def offline(repository: str) -> list[str]:
            raise errors.OfflineModeIsEnabled("offline")

        monkeypatch.setattr(huggingface_hub, "list_repo_files", offline)
        assert resolve_model("org/one-GGUF").name == "a.gguf"
        with pytest.raises(CheckpointError, match="cannot be reached"):
            resolve_model("org/none")
