"""The notebook of the examples runs, and what it shows is what comes out.

``python tests/test_notebook.py`` writes what came out into it.
"""

import nbformat
from nbclient import NotebookClient
from support import ROOT

NOTEBOOK = ROOT / "examples" / "notebook" / "hit_ratios.ipynb"


def executed(folder):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=200,
        kernel_name="python3",
        resources={"metadata": {"path": folder}},  # where the checkout is not found
        record_timing=False,
        coalesce_streams=True,
    )
    return client.execute()


def shown(notebook):
    """Return what each cell of code has under it."""
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def test_its_outputs_are_true(tmp_path):
    written = nbformat.read(NOTEBOOK, as_version=4)
    assert all(shown(written))
    assert shown(executed(tmp_path)) == shown(written)


if __name__ == "__main__":
    nbformat.write(executed(NOTEBOOK.parent), NOTEBOOK)
