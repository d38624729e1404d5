"""The packages of the `text` extra, imported when they are used."""

from functools import partial

from isouq import _extras

require = partial(_extras.require, name="text")
