"""The command metah-train data: write the sets as image files, show what is in them."""

from pathlib import Path

import click

from metah_runtime.cli import console
from metah_runtime.errors import DataError
from metah_train.cli.fit import LABELS


@click.group(cls=console.Group)
def data() -> None:
    """Write data sets as image files, or show what is in them."""


@data.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder to write.")
@click.option(
    "--synthetic",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="How many images to render.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Data seed.")
@console.json_option
def digits(out: Path, synthetic: int, seed: int, as_json: bool) -> None:
    """Write the digits as PNG files, and the lists of queries and database images.

    OUT/{syn,real}/CLASS/NUMBER.png, and OUT/DIRECTION-{query,database}.txt with one path below
    OUT a line, as metah-search add --list takes it.

    \b
    Examples:
      metah-train data digits --out digits
    """
    from metah_train.data.digits import write
    from metah_train.data.splits import SplitSizes

    count = write(out, seed=seed, sizes=SplitSizes(synthetic=synthetic))
    if as_json:
        console.print_json({"out": out, "images": count, "seed": seed})
    else:
        console.say(f"{count} images in {console.printable(out)}")


@data.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder to write.")
@click.option(
    "--packages",
    type=click.Path(path_type=Path),
    help="Folder that holds the npm packages, packed or not.  [default: npm fetches them]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Data seed.")
@console.json_option
def emoji(out: Path, packages: Path | None, seed: int, as_json: bool) -> None:
    """Write 1,911 emoji as Google (Noto) and as Twitter (Twemoji) draw them, 64 x 64.

    They come from the npm packages emoji-datasource-google and emoji-datasource-twitter (130 MB),
    whose contents are checked. OUT/{google,twitter}/CODEPOINTS.png, OUT/emoji.json, and
    OUT/DIRECTION-{query,database}.txt with one path below OUT a line.

    \b
    Examples:
      metah-train data emoji --out emoji
    """
    from metah_train.data.emoji_fetch import write

    count = write(out, packages, seed=seed)
    if as_json:
        console.print_json({"out": out, "images": count, "seed": seed})
    else:
        console.say(f"{count} images in {console.printable(out)}; their licences: NOTICE.txt")


@data.command()
@click.argument("spec", metavar="DATA")
@click.option("--direction", help="Default: the data set's first.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Data seed.")
@LABELS
@click.option("--skip-bad", is_flag=True, help="Leave out the images that cannot be read.")
@console.json_option
def info(
    spec: str,
    direction: str | None,
    seed: int,
    labels: str | None,
    skip_bad: bool,
    as_json: bool,
) -> None:
    """Show the sizes, class counts and pixel statistics of a split of DATA.

    All images are read: those that cannot be are named. DATA is digits or visda2017:ROOT
    (directions syn2real and real2syn), folder:SRC_DIR:TGT_DIR (src2tgt and tgt2src; the target may
    be without class folders), listfile:FOLDER (src2tgt; the lists query.txt and database.txt may
    be missing) or nuswide:ROOT (nus). visda2017:ROOT:LISTS takes the sets from list files,
    visda2017-objects:ROOT keeps objects of queries out of the database. emoji:ROOT (google2twitter
    and twitter2google) takes options: emoji:ROOT:OPTIONS with subcategories, cross, unseen,
    separated by commas.

    \b
    Examples:
      metah-train data info digits --direction syn2real
      metah-train data info folder:renders/:photos/ --json
    """
    from metah_train.data import load_split
    from metah_train.data.readable import find_unreadable, without
    from metah_train.data.splits import statistics

    skipped = () if skip_bad else None
    split = load_split(spec, direction, seed=seed, labels=labels, skipped=skipped)
    bad = find_unreadable(split, console.progress_bar)
    for reason in bad.values():
        console.warn(reason)
    if bad and not skip_bad:
        raise DataError(
            f"{len(bad)} images cannot be read; fix: repair or remove them, or --skip-bad here and "
            "in fit to leave them out"
        )
    split = without(split, bad)
    rows = statistics(split)
    if as_json:
        console.print_json(
            {
                "data": split.name,
                "direction": split.direction,
                "seed": seed,
                "sets": rows,
                **({"notes": split.notes} if split.notes else {}),
                **({"skipped": sorted(bad)} if bad else {}),
            }
        )
        return
    for note in split.notes:
        console.note(note)
    names = list(rows[0])
    table = [
        ["-" if row[n] is None else f"{row[n]:.3f}" if "pixel" in n else row[n] for n in names]
        for row in rows
    ]
    columns = [name.replace("_", " ") for name in names]
    console.print_table(columns, table, f"{split.name} {split.direction}, data seed {seed}")
