"""Print a script that completes jseg's commands, options and names in bash, zsh or fish.

    bash   jseg completion bash > ~/.local/share/bash-completion/completions/jseg   (or in ~/.bashrc: eval "$(...)")
    zsh    jseg completion zsh > ~/.zfunc/_jseg       with `fpath+=~/.zfunc; autoload -U compinit; compinit` in ~/.zshrc
    fish   jseg completion fish > ~/.config/fish/completions/jseg.fish

The script asks the jseg it completes for: commands and options, configs that come with jseg and their keys after --set,
names for `jseg names`, published weights, checkpoint files. It needs no new version when jseg gets one.
"""

from __future__ import annotations

import argparse
import sys

EXAMPLE = "jseg completion bash"

BASH = r"""# Completion of jseg for bash, by `jseg completion bash`.
_jseg() {
    local program="${1/#\~/$HOME}" reply
    COMPREPLY=()
    while IFS= read -r reply; do
        COMPREPLY+=("$reply")
    done < <("$program" completion bash --line "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[/.=] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _jseg jseg
"""
ZSH = r"""#compdef jseg
# Completion of jseg for zsh, by `jseg completion zsh`.
_jseg() {
    local line value
    local -a values texts open_values open_texts
    for line in "${(@f)$(${~${(Q)words[1]}} completion zsh --words "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
        value="${line%%$'\t'*}"
        [[ -n $value ]] || continue
        if [[ $value == *[/.=] ]]; then
            open_values+=("$value") open_texts+=("$value")
        else
            values+=("$value") texts+=("${line/$'\t'/  -- }")
        fi
    done
    (( $#values )) && compadd -l -d texts -a values
    (( $#open_values )) && compadd -S '' -d open_texts -a open_values
}
if [[ $funcstack[1] == _jseg ]]; then
    _jseg "$@"
else
    compdef _jseg jseg
fi
"""
FISH = r"""# Completion of jseg for fish, by `jseg completion fish`.
function __jseg_complete
    set -l typed (commandline -opc)
    set -l program (string replace -r '^~' $HOME -- $typed[1])
    set -l word (string unescape -- (commandline -ct); or commandline -ct)
    $program completion fish --words $typed[2..-1] $word 2>/dev/null
end
complete -c jseg -f -a '(__jseg_complete)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def add_arguments(parser) -> None:
    """Options of `jseg completion`; those of the scripts are not shown."""
    parser.add_argument("shell", choices=tuple(SCRIPTS))
    parser.add_argument("--line", help=argparse.SUPPRESS)
    parser.add_argument("--words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args) -> int:
    """Print the script, or for a script what may stand at the end of a line."""
    from jseg.cli._candidates import after_break, find_candidates, split_line
    from jseg.text import printable
    if args.line is None and args.words is None:
        print(SCRIPTS[args.shell], end="")
        return 0
    words = split_line(args.line)[1:] if args.line is not None else args.words
    found = find_candidates(words or [""])
    if args.line is not None:
        found = after_break(found, words[-1])
    lines = [value if args.shell == "bash" or not text else f"{value}\t{text}" for value, text in found]
    sys.stdout.writelines(f"{printable(line, keep=chr(9))}\n" for line in lines)
    return 0
