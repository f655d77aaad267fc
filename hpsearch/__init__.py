"""Tune the fine-tuning of a text classifier, keep every trial, and learn whether it helped.

Data flows one way, and a module imports only from lines below its own:

=============  =========================================================================
cli            commands: parse, call one function, print
progress       a search on a terminal, live or line by line
report         results as text and JSON documents; `findings` and `plan_report` likewise, for cost and plans
dashboard      optuna-dashboard with exhibits, behind a guard
exhibits       a study's pictures, report and note, for the dashboard; `guard` says who is answered
page           a study's report as one HTML file; `sections` and `trial_sections` say what, `content` in which records
plots          trials and evidence drawn; `canvas` has the look, SVG and PNG
export         chosen trial -> model folder, checked in a fresh process
confirm        the best trials again, on fresh seeds
compare        defaults against tuned on the sealed test rows
baseline       the tutorial's own two training systems
plan           what a search will take, measured before anything is spent
audit          what there is to know about the data before a search
card           the model card of an export; `note` explains a study, `markdown` escapes for both
on_ray         a search by workers on a Ray cluster
workers        a search by several processes of one machine
starter        a configuration for a file of one's own, proposed from what it holds
doctor         whether a search can run here; `machine` has cores, memory and mounts
cost           what a study took, and what more trials would bring
edges          whether the best trial lies at an end of the space; `importances` has what mattered
search         trials of a study until enough are finished; `probe` takes a few steps to time them
checkpoints    weights of the best trials on disk
choice         which trial a study stands for
runs           trainings outside the search, each done once and kept
flips          test texts that one side gets right and the other wrong
disk           what a study takes of the disk
artifacts      a place for checkpoints that every machine reaches
study          where studies are kept, when they may be resumed
trainer        one training, inside a search or outside
memory         batches that do not fit; `stall` ends trainings that make no progress
batches        which rows go together, and what a model is given of them
tokens         token ids of a split, kept on disk
columns        which column is the text and which the label
model, data    the encoder; the labelled rows and their splits
packing        BERT's family on texts without padding
vocabulary     the rows of the embedding that texts use; `dropout` has masks that are cheap to draw
scores         the metrics as an `evaluate` module; `metrics` has the arithmetic
bootstrap      how sure a difference is; `slices` has parts of the test rows
evidence       what was found out about a study, as records kept with it
storage        Optuna's storage for processes that run trials; `reading` reads studies sooner
owner          who runs a trial, and whether it still does; `postgres` has what a database server takes
folders        folders and files that appear whole
template       a shipped configuration with other values; `streams` has the standard ones
config, space  what is searched
errors         what can go wrong
=============  =========================================================================
"""
