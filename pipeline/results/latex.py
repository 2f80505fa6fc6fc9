r"""The table of a data set for papers: `\gridtable{voc}` is a booktabs table, `\gridvalue{CELL.mIoU}` a number."""

import re

from pipeline.results.records import Row
from pipeline.results.table import Entry, crop, csv_row, mean_iou, more_texts, schedule, splits, title_of, with_splits
from pipeline.results.values import texts_of

SPECIAL = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}
COLUMNS: dict[str, Entry] = {
    "Backbone": lambda row: title_of(row.cell, row.overrides),
    "Crop Size": crop,
    "Schedule": schedule,
    "Train/Eval Set": splits,
    "mIoU": mean_iou,
}
# \newcommand would not take names with digits, underscores and dots; an unknown name stops LaTeX.
HEAD = r"""% Written by the stage tables. In the preamble: \usepackage{booktabs}, and \input of this file.
% In the text: \gridtable{NAME} is the table, \gridvalue{CELL.COLUMN} a number, as in \gridvalue{voc_resnet50_os8.mIoU}.
\providecommand{\gridentry}[2]{\ifcsname grid#1:#2\endcsname\csname grid#1:#2\endcsname\else\errmessage{No #1 #2}\fi}
\providecommand{\gridtable}[1]{\gridentry{table}{#1}}
\providecommand{\gridvalue}[1]{\gridentry{value}{#1}}
"""


def latex(dataset: str, rows: list[Row]) -> str:
    """The content of the file, a function of the results and of params.yaml."""
    values = {
        f"{row.name}.{column}": text for row in rows for column, text in texts_of(csv_row(row), row.columns).items()
    }
    columns = with_splits(COLUMNS, rows)
    titles = [*columns, *(column.heading for column in (rows[0].columns if rows else {}).values())]
    lines = [titles, *([*(column(row) for column in columns.values()), *more_texts(row)] for row in rows)]
    align = f"{'l' * (len(COLUMNS) - 1):r<{len(titles)}}"
    head, *body = (f"{' & '.join(map(escape, line))} \\\\\n" for line in lines)
    table = "".join((f"%\n\\begin{{tabular}}{{{align}}}\n\\toprule\n", head, "\\midrule\n", *body))
    return "".join(
        (
            HEAD,
            *(define("value", name, escape(text)) for name, text in values.items()),
            define("table", dataset, f"{table}\\bottomrule\n\\end{{tabular}}"),
        )
    )


def define(kind: str, name: str, text: str) -> str:
    return f"\\expandafter\\def\\csname grid{kind}:{name}\\endcsname{{{text}}}\n"


def escape(text: str) -> str:
    """`text` as LaTeX prints it."""
    return re.sub("|".join(map(re.escape, SPECIAL)), lambda found: SPECIAL[found[0]], text)
