"""The other side of `dryrun --comfyui DIR`: a program that runs in a process of its own, with that checkout's code.

It is started by path, in whichever interpreter has the checkout's packages, and imports nothing of compatkit but its
own modules. ComfyUI is GPL code that stays where it is: it is called here through its public functions, on tensors
without weights, and only texts and shapes go back.
"""
