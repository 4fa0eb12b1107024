# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
# Completion of knetstatctl(1) for bash: names come from directories, no Python is started.

_knetstatctl_directories() {
    local path
    for path in "$1"/*/; do
        path=${path%/}
        [[ -d $path ]] && printf '%s\n' "${path##*/}"
    done
}

_knetstatctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} verb="" word index
    local verbs="status check verify build rehearse explain repair resign history sockets config"
    COMPREPLY=()
    # --option=VALUE arrives as three words.
    if [[ $cur == "=" ]]; then
        cur=""
    elif [[ $prev == "=" ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    for ((index = 1; index < COMP_CWORD; index++)); do
        if [[ " $verbs " == *" ${COMP_WORDS[index]} "* ]]; then
            verb=${COMP_WORDS[index]}
            break
        fi
    done

    word=""
    case $verb:$prev in
        verify:--kernel | verify:-k) word="next running $(_knetstatctl_directories /lib/modules)" ;;
        history:--kernel | history:-k) word=$(_knetstatctl_directories /lib/modules) ;;
        rehearse:--file)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -X '!*.ko*' -- "$cur"; compgen -d -- "$cur")
            return
            ;;
        *:--root)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -d -- "$cur")
            return
            ;;
        *:--module) word=$(_knetstatctl_directories /var/lib/dkms) ;;
        *:--step) word="build load headers" ;;
        *:--state) word="ESTB SYNS SYNR FNW1 FNW2 TIMW CLSD CLSW LACK LSTN CLSG NONE" ;;
        *:--option | *:--lines | history:-n) return ;;
        :*) word="$verbs --root --version --help -h" ;;
        *)
            case $verb in
                check) word="--json --root --quiet -q --help -h" ;;
                verify) word="--json --root --kernel -k --help -h" ;;
                build) word="--json --root --module --step --no-wait --help -h" ;;
                repair) word="--json --root --all --yes -y --dry-run -n --help -h" ;;
                rehearse) word="--json --root --module --file --help -h" ;;
                history) word="--json --root --kernel -k --module --lines -n --help -h" ;;
                sockets) word="--json --root --state --option --help -h" ;;
                *) word="--json --root --help -h" ;;
            esac
            if [[ $cur != -* ]]; then
                case $verb in
                    check | build | repair | resign) word="next running all $(_knetstatctl_directories /lib/modules)" ;;
                    rehearse | explain) word="next running $(_knetstatctl_directories /lib/modules)" ;;
                    sockets) word="tcp tcp6 udp udp6" ;;
                    verify)
                        compopt -o filenames 2>/dev/null
                        mapfile -t COMPREPLY < <(compgen -f -X '!*.ko*' -- "$cur"; compgen -d -- "$cur")
                        return
                        ;;
                    *) word="" ;;
                esac
            fi
            ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$word" -- "$cur")
}

complete -F _knetstatctl knetstatctl
