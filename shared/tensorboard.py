"""temporary"""
class Board:
    def __init__(self, d): pass
    def scalars(self, *a): pass
    def images(self, *a): pass
    def texts(self, *a): pass
