"""Folders: where the relative paths of a train config begin."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Folders:
    """`config`: the config file's folder. `project`: the nearest parent with a pyproject.toml, else the working one."""

    config: Path
    project: Path
    stem: str

    @classmethod
    def of_file(cls, path: Path) -> "Folders":
        return cls.of_directory(path.resolve().parent, path.stem)

    @classmethod
    def of_directory(cls, directory: Path, stem: str = "run") -> "Folders":
        parents = [parent for parent in (directory, *directory.parents) if (parent / "pyproject.toml").is_file()]
        return cls(directory, parents[0] if parents else Path.cwd(), stem)

    def find(self, text: str) -> Path | None:
        """An existing file: relative to the config's folder, else to the project's."""
        candidates = (folder / Path(text).expanduser() for folder in (self.config, self.project))
        return next((path for path in candidates if path.exists()), None)

    @property
    def told(self) -> str:
        """Both, or the one that both are."""
        return " and ".join(dict.fromkeys([str(self.config), str(self.project)]))

    def save_dir(self, text: str) -> Path:
        return self.project / Path(text).expanduser()
