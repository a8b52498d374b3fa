"""Sudoku for a base that has never seen one: the base, the rows, and the run of ``docs/finetuning.md``.

python tools/finetune_sudoku.py base BASE                 # nano with a token for each cell and value, on canvases of 96
python tools/finetune_sudoku.py rows ROWS.jsonl           # {"prompt", "completion"}
diffusiongemma finetune BASE --data ROWS.jsonl --preset small --full --train-router --compile -o OUT
diffusiongemma eval sudoku --model OUT/model -n 500
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.examples.sudoku.data import SudokuData, SudokuPuzzles
from diffusiongemma.examples.sudoku.puzzles import ROWS, Sudoku, answer_text, prompt_text
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.text.tokenizer import Tokenizer as TextTokenizer

CELLS = [f"{row}{column}={value}" for row in ROWS for column in range(1, 10) for value in "?123456789"]
CANVAS = 96
"""Positions: nine lines of nine digits and a stop token take 90."""


def base(out: Path, seed: int = 1) -> None:
    """nano, whose vocabulary has a token more for each cell and value, as ``A1=7``.

    A new token's embedding is a sum of a row's, a column's, a box's and a value's random vectors, as long as nano's own are: what a
    cell is, and nothing of the game.
    """
    nano = DiffusionGemmaModel.from_pretrained("nano")
    nano.save_pretrained(out)
    backend = Tokenizer.from_file(str(out / "tokenizer.json"))
    backend.add_tokens([AddedToken(cell, lstrip=True, normalized=False) for cell in CELLS])
    backend.save(str(out / "tokenizer.json"))
    old = nano.transformer.state_dict()
    embedding_VD = old["embed_tokens.weight"]
    generator = torch.Generator().manual_seed(seed)
    row, column, box, value = (torch.randn(count, embedding_VD.shape[1], generator=generator) for count in (9, 9, 9, 10))
    new_CD = torch.stack(
        [row[r] + column[c] + box[3 * (r // 3) + c // 3] + value[v] for r in range(9) for c in range(9) for v in range(10)]
    )
    new_CD *= embedding_VD.norm(dim=1).mean() / new_CD.norm(dim=1).mean()
    text = replace(nano.config.text, vocab_size=len(embedding_VD) + len(CELLS))
    model = Transformer(replace(nano.config, text=text, canvas_length=CANVAS))
    model.load_state_dict({**old, "embed_tokens.weight": torch.cat((embedding_VD, new_CD.to(embedding_VD.dtype)))})
    DiffusionGemmaModel(
        model, TextTokenizer.from_folder(out), nano.defaults.replaced(repair=0), nano.stop_ids, folder=nano.checkpoint.folder
    ).save_pretrained(out)


def rows(out: Path, count: int, fewest: int, most: int, puzzles: int, seed: int) -> None:
    """Puzzles of our own generator, varied by the game's symmetries and by clues given back."""
    recipe = SudokuPuzzles(base="own", base_puzzles=puzzles, base_seed=seed, min_clues=fewest, max_clues=most)
    data = SudokuData(recipe, seed, out.parent, lambda done, of: print(f"\r{done}/{of} puzzles", end=""))
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    with out.open("w") as file:
        for pick in rng.integers(0, len(data.base), count):
            clues, solution = data.vary(data.base[pick].astype(np.int64), rng)
            puzzle = Sudoku("".join(str(digit) if digit else "." for digit in clues), "".join(map(str, solution)))
            assert puzzle.solution is not None
            file.write(json.dumps({"prompt": prompt_text(puzzle), "completion": answer_text(puzzle.solution)}) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("base")
    one.add_argument("out", type=Path)
    one = commands.add_parser("rows")
    one.add_argument("out", type=Path)
    one.add_argument("--count", type=int, default=100_000)
    one.add_argument("--fewest", type=int, default=31)
    one.add_argument("--most", type=int, default=51)
    one.add_argument("--puzzles", type=int, default=10_000)
    one.add_argument("--seed", type=int, default=2)
    given = vars(parser.parse_args())
    command = given.pop("command")
    {"base": base, "rows": rows}[command](**given)


if __name__ == "__main__":
    main()
