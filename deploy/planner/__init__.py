"""The capacity planner: what models need of GPUs, where they go, and how to start them so. Pure arithmetic over stated figures.

    shapes      a model's dimensions, from its config.json
    tensors     its parameters, tensor by tensor
    precisions  bytes of a tensor in a number format
    catalogue   known models, GPUs and presets; model folders
    brought     models that a plan brings along, from an uploaded config.json
    memory      what one service needs of each of its GPUs
    request     what is asked: GPUs, buffer, services
    servable    what a server cannot do with a model whatever the memory
    placement   services on GPUs
    cures       the smallest change that makes a service fit
    limits      most sequences, longest context, upper bounds of speed
    fleet       which GPU carries a load for what cost
    flags       command lines, compose and Kubernetes pieces
    reality     measured memory beside the plan

Knows no server, no settings and no clock; loads no model and asks nobody.
"""
