#!/usr/bin/python
"""Bring an image to a host; the work is done by the action plugin of the same name, this tells how to use it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_image
short_description: Bring an image from the control node to a host, sending only the layers that it lacks
description:
  - Asks the host which layers it has, sends an archive of the others and has it loaded; no registry is needed. Where the
    host's engine does not take an archive without the layers that it has, all are sent, and the result says so.
  - This is an action plugin; nothing but the Docker client is needed on the host.
author: Trading Bot Ops (@trading-bot-ops)
options:
  image_dir:
    description: The image as M(release_build) keeps it on the control node, its C(image_dir).
    type: path
    required: true
  repository:
    description: The repository of the tag on the host; the tag is the first twelve digits of the image's digest.
    type: str
    default: trading-bot
  registry:
    description: Where hosts pull the image from instead, C(registry.example/trading-bot@sha256:...).
    type: str
  docker:
    description: The Docker client on the host.
    type: str
    default: docker
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Ensure the image is on the host
  release_image:
    image_dir: "{{ __release_built.image_dir }}"
  register: __release_image
"""

RETURN = r"""
image: {description: The digest of the image's configuration, type: str, returned: always}
host_image: {description: The digest that the host's engine knows it by. Null if it is not there, type: str, returned: always}
reference: {description: The tag on the host, type: str, returned: always}
bytes_moved: {description: Bytes sent; those of the missing layers in check mode, type: int, returned: always}
bytes_complete: {description: Bytes of all its layers as they would be sent, type: int, returned: always}
layers_present: {description: How many of its layers the host had, type: int, returned: always}
layers_moved: {description: How many were sent, type: int, returned: always}
method: {description: "present, partial, complete or registry; in check mode unknown if not built", type: str, returned: always}
note: {description: What was out of the ordinary, type: str, returned: always}
"""
