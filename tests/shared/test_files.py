"""Folders give their files in order, and files whose results would be one are named."""

from shared.files import check_stems, expanded, files_in
from tests.errors import one_line_error

ENDINGS = (".png", ".jpg")


def made(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_folders_are_listed_in_order(tmp_path):
    names = ["a.PNG", "b/a.jpg", "b/c/z.png", "d.JPG", "g.jpg/in.png"]
    made(tmp_path, *names[::-1], "notes.txt", "b/f.tif", "._a.jpg")
    assert [path.relative_to(tmp_path).as_posix() for path in files_in(str(tmp_path), ENDINGS, "picture")] == names
    (tmp_path / "none").mkdir()
    one_line_error(lambda: files_in(tmp_path / "none", ENDINGS, "picture"), tmp_path / "none", "no picture", ".png")


def test_folders_are_replaced_by_their_files(tmp_path):
    made(tmp_path, "b.png", "a.png")
    found = list(expanded(["first", "", " ", str(tmp_path), "last.txt"], ENDINGS, "picture"))
    assert found == ["first", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "last.txt"]


def test_files_of_one_name_are_refused():
    check_stems("--plot", ["a/x.png", "a/y.png", "a/x.png"])
    one_line_error(lambda: check_stems("--plot", ["a/x.png", "b/x.jpg"]), "--plot", "a/x.png", "b/x.jpg")
