# SPDX-License-Identifier: GPL-2.0-or-later
# Completion of knetstatctl(1) for fish: names come from directories, no Python is started.

function __knetstatctl_kernels
    for path in /lib/modules/*/
        string replace -r '.*/([^/]+)/$' '$1' -- $path
    end
end

function __knetstatctl_modules
    for path in /var/lib/dkms/*/
        string replace -r '.*/([^/]+)/$' '$1' -- $path
    end
end

set -l verbs status check verify build rehearse explain repair resign history sockets config
set -l seen __fish_seen_subcommand_from

complete -c knetstatctl -f
complete -c knetstatctl -s h -l help -d 'Show a short help'
complete -c knetstatctl -n "not $seen $verbs" -l version -d 'Print the version'
complete -c knetstatctl -n "not $seen $verbs" -a status -d 'Show every guarded module on every kernel'
complete -c knetstatctl -n "not $seen $verbs" -a check -d 'Is it safe to reboot?'
complete -c knetstatctl -n "not $seen $verbs" -a verify -d 'Will this module file load on that kernel?'
complete -c knetstatctl -n "not $seen $verbs" -a build -d 'Build, prove and publish the guarded modules'
complete -c knetstatctl -n "not $seen $verbs" -a rehearse -d 'Start the kernel in a throwaway machine'
complete -c knetstatctl -n "not $seen $verbs" -a explain -d 'Why is it as it is, and what to do'
complete -c knetstatctl -n "not $seen $verbs" -a repair -d 'Finish what dkms and dpkg got stuck in'
complete -c knetstatctl -n "not $seen $verbs" -a resign -d 'Sign the installed modules again'
complete -c knetstatctl -n "not $seen $verbs" -a history -d 'What happened, newest last'
complete -c knetstatctl -n "not $seen $verbs" -a sockets -d 'Every socket with its options'
complete -c knetstatctl -n "not $seen $verbs" -a config -d 'Show the configuration in force'

complete -c knetstatctl -n "$seen $verbs" -l json -d 'Print JSON'
complete -c knetstatctl -l root -x -a '(__fish_complete_directories)' -d 'Ask the system below this directory'
complete -c knetstatctl -n "$seen check build repair resign" -a 'next running all (__knetstatctl_kernels)'
complete -c knetstatctl -n "$seen rehearse explain" -a 'next running (__knetstatctl_kernels)'
complete -c knetstatctl -n "$seen sockets" -a 'tcp tcp6 udp udp6'
complete -c knetstatctl -n "$seen check" -s q -l quiet -d 'Say nothing'
complete -c knetstatctl -n "$seen verify" -s k -l kernel -x -a 'next running (__knetstatctl_kernels)' -d 'The kernel'
complete -c knetstatctl -n "$seen verify" -F
complete -c knetstatctl -n "$seen build" -l step -x -a 'build load headers' -d 'Only such steps'
complete -c knetstatctl -n "$seen build" -l no-wait -d 'Do not wait for package managers or other runs'
complete -c knetstatctl -n "$seen repair" -l all -d 'The same as all'
complete -c knetstatctl -n "$seen repair" -s y -l yes -d 'Do not ask'
complete -c knetstatctl -n "$seen repair" -s n -l dry-run -d 'Only show it'
complete -c knetstatctl -n "$seen build rehearse history" -l module -x -a '(__knetstatctl_modules)' -d 'Only this module'
complete -c knetstatctl -n "$seen rehearse" -l file -r -F -d 'This file instead of the installed modules'
complete -c knetstatctl -n "$seen history" -s k -l kernel -x -a '(__knetstatctl_kernels)' -d 'Only this kernel'
complete -c knetstatctl -n "$seen history" -s n -l lines -x -d 'At most so many entries'
complete -c knetstatctl -n "$seen sockets" -l state -x -a 'ESTB SYNS SYNR FNW1 FNW2 TIMW CLSD CLSW LACK LSTN CLSG NONE' -d 'Only these'
complete -c knetstatctl -n "$seen sockets" -l option -x -d 'Only with this option'
